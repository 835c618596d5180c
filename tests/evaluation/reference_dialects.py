# SPDX-License-Identifier: Apache-2.0
"""Every dialect in plain Python, from a database and results to AP per class.

Written from the rules of each evaluator, one function per dialect that says what it does to the
records, and two slow matchers. No code of the library is used.
"""

import math

import numpy as np

IGNORED = ("video_test_0000270", "video_test_0001292", "video_test_0001496")


def evaluate(dialect, database, results, subset, thresholds):
    """What the dialect's own evaluator would say.

    Args:
        dialect: its name.
        database: {video: {"subset", "annotations": [{"segment", "label", "label_id"}]}}.
        results: {video: [{"segment", "label", "score"}]}.
        subset: to evaluate.
        thresholds: list of tIoU.

    Returns:
        ({class: [AP per threshold]} of the classes that count, [mAP per threshold]).

    Raises:
        KeyError: where the evaluator raises it.
    """
    truth, found, counted, options = globals()[f"_{dialect}"](database, results, subset)
    regions = options.pop("regions", [])
    ap = {}
    for name in counted:
        own_truth = [g for g in truth if g[1] == name]
        own_found = [d for d in found if d[1] == name]
        if options.get("thumos"):
            ap[name] = [_thumos_ap(own_truth, own_found, regions, t) for t in thresholds]
        else:
            ap[name] = [_ap(own_truth, own_found, t, options) for t in thresholds]
    return ap, [_mean([values[k] for values in ap.values()]) for k in range(len(thresholds))]


def _mean(values):
    return math.fsum(values) / len(values) if values else math.nan


def _rows(database, results, subset, fits=lambda name, subset: name == subset):
    truth = [
        (video, a["label"], *map(float, a["segment"]))
        for video, entry in database.items()
        if fits(entry["subset"], subset)
        for a in entry["annotations"]
    ]
    found = [
        (video, d["label"], *map(float, d["segment"]), d["score"])
        for video, entries in results.items()
        for d in entries
    ]
    return truth, found


def _classes(truth):
    return list(dict.fromkeys(g[1] for g in truth))


def _ids(database):
    return {a["label"]: a["label_id"] for entry in database.values() for a in entry["annotations"]}


def _without_duplicates(truth, kept_first=lambda length: True):
    kept = []
    for video, label, start, end in truth:
        if not kept_first(end - start):
            continue
        if any(
            v == video and c == label and abs(start - s) <= 1e-3 and abs(end - e) <= 1e-3
            for v, c, s, e in kept
        ):
            continue
        kept.append((video, label, start, end))
    return kept


def _with_collisions(truth, found, ids):
    """Both sides are renumbered; an absent class keeps its number, which may be another's."""
    present = sorted({ids[g[1]] for g in truth})
    number = {old: new for new, old in enumerate(present)}
    name_of = {number[ids[name]]: name for name in _classes(truth)}
    renamed = []
    for video, label, *rest in found:
        new = number.get(ids[label], ids[label])
        renamed.append((video, name_of.get(new), *rest))
    return renamed


# ---- one per dialect: (truth, found, classes that count, options) ----------------------------


def _tal_fast(database, results, subset):
    truth, found = _rows(database, results, subset)
    return (
        truth,
        found,
        _classes(truth),
        {"union": "guarded", "scores": "stable", "tious": "stable"},
    )


def _activitynet(database, results, subset):
    truth, found = _rows(database, results, subset)
    classes = _classes(truth)
    for row in found:
        if row[1] not in classes:
            raise KeyError(row[1])
    return truth, found, classes, {}


def _actionformer(database, results, subset):
    truth, found = _rows(database, results, subset, lambda name, subset: name.lower() == subset)
    truth = _without_duplicates(truth, lambda length: length >= 1e-3)
    found = _with_collisions(truth, found, _ids(database))
    return truth, found, _classes(truth), {}


def _tridet(database, results, subset):
    truth, found = _rows(database, results, subset, lambda name, subset: name.lower() == subset)
    truth = [g for g in _without_duplicates(truth) if g[2] != g[3]]
    found = _with_collisions(truth, found, _ids(database))
    return truth, found, _classes(truth), {}


def _opentad(database, results, subset):
    truth, found = _rows(database, results, subset)
    truth = _without_duplicates(truth, lambda length: length > 0)
    return truth, found, _classes(truth), {"union": "clamped"}


def _mmaction2(database, results, subset):
    database = {video[2:]: entry for video, entry in database.items()}
    truth, found, classes, _ = _activitynet(database, results, subset)
    return truth, found, classes, {"scores": "stable", "single": True}


def _tadtr(database, results, subset):
    truth, found = _rows(database, results, subset, lambda name, subset: name in subset)
    truth = [g for g in truth if g[0] not in IGNORED and g[1] != "Ambiguous"]
    videos = {g[0] for g in truth}
    best = []
    for video in results:
        if video in videos:
            own = [d for d in found if d[0] == video]
            order = np.array([d[4] for d in own], dtype=np.float64).argsort()[::-1]
            best += [own[i] for i in order[:200]]
    return truth, best, sorted(_ids(database)), {}


def _epic(database, results, subset):
    truth, found = _rows(database, results, subset)
    classes = _classes(truth)
    return truth, [d for d in found if d[1] in classes], classes, {}


def _thumos(database, results, subset):
    truth, found = _rows(database, results, subset)
    regions = [g for g in truth if g[1] == "Ambiguous"]
    truth = [g for g in truth if g[1] != "Ambiguous"]
    return truth, found, _classes(truth), {"thumos": True, "regions": regions}


# ---- the two matchers ------------------------------------------------------------------------


def tiou(a, b, union_rule="unguarded"):
    """Temporal IoU; 0 / 0 is NaN unless guarded (0) or clamped (union >= 1e-8)."""
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (b[1] - b[0]) + (a[1] - a[0]) - intersection
    if union_rule == "clamped":
        union = max(union, 1e-8)
    if union == 0:
        return 0.0 if union_rule == "guarded" else math.nan
    return intersection / union


def _falling(values, ties, dtype=np.float64):
    if ties == "stable":
        return sorted(range(len(values)), key=lambda i: -values[i])
    return np.array(values, dtype=dtype).argsort()[::-1].tolist()


def _ap(truth, found, threshold, options):
    if not truth:
        return math.nan if found else 0.0
    taken = set()
    outcome = []
    for i in _falling([d[4] for d in found], options.get("scores", "numpy")):
        video, _, start, end, _ = found[i]
        own = [g for g, instance in enumerate(truth) if instance[0] == video]
        overlaps = [tiou(truth[g][2:], (start, end), options.get("union")) for g in own]
        if options.get("single"):
            overlaps = [float(np.float32(o)) for o in overlaps]
        dtype = np.float32 if options.get("single") else np.float64
        hit = False
        for j in _falling(overlaps, options.get("tious", "numpy"), dtype):
            if overlaps[j] < threshold:
                break
            if own[j] in taken:
                continue
            taken.add(own[j])
            hit = True
            break
        outcome.append(hit)
    return interpolated_area(outcome, len(truth))


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


def _thumos_ap(truth, found, regions, threshold):
    pooled = []
    for video in sorted({row[0] for row in (*truth, *found)}):
        own = sorted((d for d in found if d[0] == video), key=lambda d: -d[4])
        free = [True] * len(own)
        for instance in (g for g in truth if g[0] == video):
            candidates = [i for i in range(len(own)) if free[i]]
            overlap = {i: tiou(instance[2:], own[i][2:4], "guarded") for i in candidates}
            if candidates:
                best = max(candidates, key=lambda i: overlap[i])  # the first of equals
                if overlap[best] > threshold:
                    free[best] = False
        for i, detection in enumerate(own):
            over = any(
                r[0] == video and tiou(r[2:], detection[2:4], "guarded") > 0 for r in regions
            )
            if not (free[i] and over):
                pooled.append((detection[4], not free[i]))
    pooled.sort(key=lambda row: -row[0])
    true, total = 0, 0.0
    for rank, (_, hit) in enumerate(pooled, start=1):
        true += hit
        total += hit * true / rank
    return total / len(truth)
