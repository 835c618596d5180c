# SPDX-License-Identifier: Apache-2.0
"""The evaluation rule in plain Python, one threshold and one detection at a time.

Written from the rule (ActivityNet's, with stable ties and a guarded union) and not from the native
code: no arrays, no bit masks, no shared passes.
"""

import math


def tiou(a, b):
    """Temporal IoU of (start, end) pairs; two zero-length segments overlap by 0."""
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


def hits(instances, detections, threshold):
    """True or False per detection of one class, in order of rank.

    Args:
        instances: list of (video, start, end).
        detections: list of (video, start, end, score) in input order.
        threshold: tIoU to reach.
    """
    taken = set()
    outcome = []
    for video, start, end, _ in sorted(detections, key=lambda d: -d[3]):
        own = [i for i, instance in enumerate(instances) if instance[0] == video]
        overlap = {i: tiou(instances[i][1:], (start, end)) for i in own}
        hit = False
        for i in sorted(own, key=lambda i: -overlap[i]):
            if overlap[i] < threshold:
                break
            if i in taken:
                continue
            taken.add(i)
            hit = True
            break
        outcome.append(hit)
    return outcome


def interpolated_area(outcome, num_instances):
    """Area under the precision envelope, with the points (0, 0) and (1, 0) added."""
    recall, precision = [0.0], [0.0]
    true = 0
    for rank, hit in enumerate(outcome, start=1):
        true += hit
        recall.append(true / num_instances)
        precision.append(true / rank)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return math.fsum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def average_precision(ground_truth, detections, num_classes, thresholds):
    """AP and hits of every class and threshold.

    Args:
        ground_truth: list of (video, label, start, end).
        detections: list of (video, label, start, end, score).
        num_classes: labels are below it.
        thresholds: list of tIoU.

    Returns:
        ap[class][threshold] (NaN for a class without ground truth), true[class][threshold].
    """
    ap, true = [], []
    for label in range(num_classes):
        instances = [(v, s, e) for v, c, s, e in ground_truth if c == label]
        own = [(v, s, e, x) for v, c, s, e, x in detections if c == label]
        outcomes = [hits(instances, own, t) for t in thresholds]
        true.append([sum(outcome) for outcome in outcomes])
        ap.append(
            [interpolated_area(o, len(instances)) if instances else math.nan for o in outcomes]
        )
    return ap, true
