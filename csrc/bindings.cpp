// SPDX-License-Identifier: Apache-2.0
// The Python bindings of everything that is not a tensor op: reader, evaluator, build_info.
//
// Why both these bindings and torch ops: torch.compile cannot trace a pybind11 call, so everything
// that touches tensors is an op (csrc/ops). Reader and evaluator work on bytes and plain arrays.
// Why no torch header here: torch carries its own copy of pybind11 and rejects pybind11 beside the
// stable ABI, so this file must see pybind11 alone.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cpu/available_isas.h"
#include "evaluation/average_precision.h"
#include "evaluation/error_analysis.h"
#include "evaluation/recall.h"
#include "evaluation/resampling.h"
#include "reader/reader.h"

namespace py = pybind11;

namespace {

std::vector<std::string> isa_names(const std::vector<tal_fast::cpu::Isa>& isas) {
  std::vector<std::string> names;
  for (const tal_fast::cpu::Isa isa : isas) {
    names.emplace_back(tal_fast::cpu::isa_name(isa));
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = TAL_FAST_BUILT_COMPILER;
  info["build_type"] = TAL_FAST_BUILT_TYPE;
  info["torch_headers"] = TAL_FAST_BUILT_TORCH;
  info["torch_target"] = "2.10";
  info["isas_built"] = py::str(TAL_FAST_BUILT_ISAS).attr("split")(",");
  info["isas_available"] = isa_names(tal_fast::cpu::available_isas());
  info["isa"] = tal_fast::cpu::isa_name(tal_fast::cpu::selected_isa());
  info["cuda"] = TAL_FAST_BUILT_CUDA != 0;
  info["cuda_reason"] = TAL_FAST_CUDA_REASON;
  return info;
}

void bind_build_info(py::module_& m) {
  m.def("build_info", &build_info, "How this library was built and which instruction set it uses.");
}

// ---- evaluation ---------------------------------------------------------------------------------

namespace ev = tal_fast::evaluation;

// noconvert() on every argument: an array of another dtype or layout is a TypeError, never a copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Ints = Array<int64_t>;
using Floats = Array<double>;

template <typename T>
const T* column(const Array<T>& array, const char* name, py::ssize_t size) {
  if (array.ndim() != 1 || array.shape(0) != size) {
    throw py::value_error("evaluation: expected " + std::string(name) + " of shape [" +
                          std::to_string(size) + "], got an array of " +
                          std::to_string(array.ndim()) + " dimensions and " +
                          std::to_string(array.size()) + " elements");
  }
  return array.data();
}

template <typename T>
py::array_t<T> to_numpy(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), values.data());
}

// Columns of instances, detections or regions; all [N].
struct PySegments {
  Ints video;
  Ints label;
  Floats start;
  Floats end;

  py::ssize_t size() const { return video.size(); }
};

// ev::Problem without the rules, and the arrays that it points into.
struct PyProblem {
  PySegments truth;
  PySegments found;
  Floats score;  // [detections]
  PySegments regions;
  int64_t num_videos;
  int64_t num_classes;
  std::optional<Ints> order;  // [detections]
  py::object tie_order;       // None, or from overlaps to the order in which to try them

  ev::Problem view() const {
    ev::Problem p;
    p.ground_truth = {truth.size(), column(truth.video, "video of the ground truth", truth.size()),
                      column(truth.label, "label of the ground truth", truth.size()),
                      column(truth.start, "start of the ground truth", truth.size()),
                      column(truth.end, "end of the ground truth", truth.size())};
    p.detections = {found.size(),
                    column(found.video, "video of the detections", found.size()),
                    column(found.label, "label of the detections", found.size()),
                    column(found.start, "start of the detections", found.size()),
                    column(found.end, "end of the detections", found.size()),
                    column(score, "score", found.size())};
    p.ambiguous = {regions.size(), column(regions.video, "video of the regions", regions.size()),
                   column(regions.start, "start of the regions", regions.size()),
                   column(regions.end, "end of the regions", regions.size())};
    p.num_videos = num_videos;
    p.num_classes = num_classes;
    if (order.has_value())
      p.order = column(*order, "order", found.size());
    return p;
  }
};

// One evaluation: the problem, whose arrays it keeps alive, and once matched the outcome.
class PyEvaluation {
 public:
  PyEvaluation(PyProblem problem, const ev::Rules& rules, const Floats& thresholds, int num_threads)
      : held_(std::move(problem)),
        thresholds_(thresholds),
        num_threads_(num_threads),
        p_(held_.view()) {
    p_.num_thresholds = thresholds_.size();
    p_.thresholds = column(thresholds_, "thresholds", thresholds_.size());
    p_.rules = rules;
    if (!held_.tie_order.is_none())
      p_.tie_order = [this](const double* overlaps, int64_t size, int64_t* tried) {
        ask_tie_order(overlaps, size, tried);
      };
    const py::gil_scoped_release release;
    ev::check(p_);  // a std::invalid_argument becomes a ValueError
  }

  PyEvaluation(const PyEvaluation&) = delete;
  PyEvaluation& operator=(const PyEvaluation&) = delete;

  py::tuple match() {
    {
      const py::gil_scoped_release release;
      result_ = ev::average_precision(p_, num_threads_);
    }
    const std::vector<py::ssize_t> cells{p_.num_classes, p_.num_thresholds};
    return py::make_tuple(to_numpy(result_.ap, cells), to_numpy(result_.true_positives, cells),
                          to_numpy(result_.num_ground_truth, {p_.num_classes}),
                          to_numpy(result_.num_detections, {p_.num_classes}));
  }

  py::array_t<uint64_t> hits() const { return to_numpy(result_.hits, {p_.detections.size}); }
  py::array_t<uint64_t> found() const { return to_numpy(result_.found, {p_.ground_truth.size}); }
  py::array_t<int64_t> ranked() const { return to_numpy(result_.ranked, {p_.detections.size}); }

  py::array_t<int64_t> first_hits(bool by_class) const {
    std::vector<int64_t> first;
    {
      const py::gil_scoped_release release;
      first = ev::first_hits(p_, by_class, num_threads_);
    }
    return to_numpy(first, {p_.ground_truth.size, p_.num_thresholds});
  }

  py::array_t<double> resample(int64_t replicates, uint64_t seed) {
    std::vector<double> ap;
    {
      const py::gil_scoped_release release;
      need_result(false);
      ap = ev::resample(p_, result_, replicates, seed, num_threads_);
    }
    return to_numpy(ap, {replicates, p_.num_classes, p_.num_thresholds});
  }

  py::tuple errors(double floor) {
    ev::Kinds kinds;
    std::vector<double> without;
    {
      const py::gil_scoped_release release;
      need_result(true);
      kinds = ev::error_kinds(p_, result_, floor, num_threads_);
      without = ev::ap_without(p_, result_, kinds.kind);
    }
    const std::vector<py::ssize_t> each{p_.num_thresholds, p_.detections.size};
    return py::make_tuple(
        to_numpy(kinds.kind, each), to_numpy(kinds.best_overlap, {p_.detections.size}),
        to_numpy(kinds.best_instance, {p_.detections.size}), to_numpy(result_.matched, each),
        to_numpy(without, {ev::kNumErrors, p_.num_classes, p_.num_thresholds}));
  }

  py::array_t<double> ap_of_bins(const Ints& bin, int64_t num_bins, double normalizer) {
    const int64_t* bins = column(bin, "bin", p_.ground_truth.size);
    for (int64_t g = 0; g < p_.ground_truth.size; ++g) {
      if (bins[g] < -1 || bins[g] >= num_bins)
        throw py::value_error("evaluation: expected bins in [-1, " + std::to_string(num_bins) +
                              "), got " + std::to_string(bins[g]));
    }
    std::vector<double> ap;
    {
      const py::gil_scoped_release release;
      need_result(true);
      ap = ev::ap_of_bins(p_, result_, bins, num_bins, normalizer);
    }
    return to_numpy(ap, {num_bins, p_.num_classes, p_.num_thresholds});
  }

 private:
  void need_result(bool matched) {
    const bool there = !result_.begin.empty();
    if (!there || (matched && result_.matched.empty() && p_.detections.size > 0))
      result_ = ev::average_precision(p_, num_threads_, matched);
  }

  void ask_tie_order(const double* overlaps, int64_t size, int64_t* tried) const {
    const py::gil_scoped_acquire acquire;
    const py::array_t<double> values(size, overlaps);
    const Ints answer = held_.tie_order(values).cast<Ints>();
    std::vector<bool> seen(static_cast<size_t>(size), false);
    if (answer.ndim() != 1 || answer.size() != size)
      throw py::value_error("evaluation: tie_order must return one index per overlap");
    for (int64_t n = 0; n < size; ++n) {
      const int64_t at = answer.data()[n];
      if (at < 0 || at >= size || seen[at])
        throw py::value_error("evaluation: tie_order must return each index once");
      seen[at] = true;
      tried[n] = at;
    }
  }

  PyProblem held_;
  Floats thresholds_;
  int num_threads_;
  ev::Problem p_;
  ev::Result result_;
};

py::array_t<int64_t> draw_videos(int64_t num_videos, uint64_t seed, int64_t replicate) {
  return to_numpy(ev::draw_videos(num_videos, seed, replicate), {num_videos});
}

void bind_evaluation(py::module_& m) {
  m.def("draw_videos", &draw_videos, py::arg("num_videos"), py::arg("seed"), py::arg("replicate"),
        "How often a replicate of the bootstrap draws each video.");
  py::enum_<ev::Union>(m, "Union", "What becomes of a union of length zero.")
      .value("GUARDED", ev::Union::kGuarded)
      .value("UNGUARDED", ev::Union::kUnguarded)
      .value("CLAMPED", ev::Union::kClamped);
  py::class_<ev::Rules>(m, "Rules", "ev::Rules of csrc/evaluation/problem.h.")
      .def(py::init([](ev::Union union_rule, bool single_tiou, bool single_segments,
                       bool instances_choose, bool strictly_above, bool interpolate) {
             return ev::Rules{union_rule,       single_tiou,    single_segments,
                              instances_choose, strictly_above, interpolate};
           }),
           py::kw_only(), py::arg("union_rule"), py::arg("single_tiou"), py::arg("single_segments"),
           py::arg("instances_choose"), py::arg("strictly_above"), py::arg("interpolate"));
  py::class_<PySegments>(m, "Segments", "Columns of instances, detections or regions.")
      .def(py::init<Ints, Ints, Floats, Floats>(), py::kw_only(), py::arg("video").noconvert(),
           py::arg("label").noconvert(), py::arg("start").noconvert(), py::arg("end").noconvert());
  py::class_<PyProblem>(m, "Problem", "What is evaluated; see csrc/evaluation/problem.h.")
      .def(py::init<PySegments, PySegments, Floats, PySegments, int64_t, int64_t,
                    std::optional<Ints>, py::object>(),
           py::kw_only(), py::arg("truth"), py::arg("found"), py::arg("score").noconvert(),
           py::arg("regions"), py::arg("num_videos"), py::arg("num_classes"),
           py::arg("order").noconvert().none(true), py::arg("tie_order").none(true));
  py::class_<PyEvaluation>(m, "Evaluation",
                           "Matching, average precision and what builds on them; see "
                           "csrc/evaluation.")
      .def(py::init<PyProblem, const ev::Rules&, const Floats&, int>(), py::arg("problem"),
           py::arg("rules"), py::arg("thresholds").noconvert(), py::arg("num_threads"))
      .def("match", &PyEvaluation::match)
      .def("first_hits", &PyEvaluation::first_hits, py::arg("by_class"))
      .def("resample", &PyEvaluation::resample, py::arg("replicates"), py::arg("seed"))
      .def("errors", &PyEvaluation::errors, py::arg("floor"))
      .def("ap_of_bins", &PyEvaluation::ap_of_bins, py::arg("bin").noconvert(), py::arg("num_bins"),
           py::arg("normalizer"))
      .def_property_readonly("hits", &PyEvaluation::hits)
      .def_property_readonly("found", &PyEvaluation::found)
      .def_property_readonly("ranked", &PyEvaluation::ranked);
}

// ---- reader -------------------------------------------------------------------------------------

namespace rd = tal_fast::reader;

// A Reader plus references to the arrays that its threads write to: they live until their ticket is
// waited for or cancelled, or the threads are joined, whatever Python does with its own references.
class PyReader {
 public:
  PyReader(const std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, int, int>>& extents,
           int threads, int max_open_files, bool check_finite) {
    std::vector<rd::Extent> all;
    all.reserve(extents.size());
    for (const auto& [path, offset, rows, columns, dtype, layout] : extents) {
      all.push_back({path, offset, rows, columns, static_cast<rd::DType>(dtype),
                     static_cast<rd::Layout>(layout)});
    }
    reader_ = std::make_unique<rd::Reader>(std::move(all), threads, max_open_files, check_finite);
  }

  ~PyReader() { reader_->close(); }  // before held_: no thread may write to a freed array
  PyReader(const PyReader&) = delete;
  PyReader& operator=(const PyReader&) = delete;

  // features: [B, L, C] (layout 0, TC) or [B, C, L] (1, CT) of 2- or 4-byte elements; mask: [B, L];
  // jobs: one line per extent of a window, (slot, extent, column of the slot, start, stop, rows to
  // resample to or 0). The mask of a slot is written with its column 0.
  int64_t submit(py::array& features, py::array_t<bool, py::array::c_style>& mask,
                 const py::array_t<int64_t, py::array::c_style>& jobs, int dtype, int layout) {
    const auto type = static_cast<rd::DType>(dtype);
    const bool rows_first = layout == 0;
    if (features.ndim() != 3 || mask.ndim() != 2 || jobs.ndim() != 2 || jobs.shape(1) != 6 ||
        mask.shape(0) != features.shape(0) || mask.shape(1) != features.shape(rows_first ? 1 : 2) ||
        (features.flags() & py::array::c_style) == 0 ||
        features.itemsize() != rd::item_size(type)) {
      throw std::invalid_argument(
          "reader: expected contiguous features [B, L, C] or [B, C, L] of the dtype given, mask "
          "[B, L] and jobs [N, 6]");
    }
    const int64_t slots = features.shape(0);
    const int64_t length = mask.shape(1);
    const int64_t channels = features.shape(rows_first ? 2 : 1);
    const int64_t item = features.itemsize();
    auto* const data = static_cast<char*>(features.mutable_data());
    auto* const padding = reinterpret_cast<uint8_t*>(mask.mutable_data());
    std::vector<rd::WindowJob> all;
    all.reserve(static_cast<size_t>(jobs.shape(0)));
    for (py::ssize_t i = 0; i < jobs.shape(0); ++i) {
      const int64_t slot = jobs.at(i, 0);
      const int64_t column = jobs.at(i, 2);
      const rd::Extent& extent = reader_->extent(jobs.at(i, 1));
      if (slot < 0 || slot >= slots) {
        throw std::invalid_argument("reader: no slot " + std::to_string(slot) + " among " +
                                    std::to_string(slots));
      }
      if (column < 0 || column > channels || extent.columns > channels - column) {
        throw std::invalid_argument("reader: " + extent.path + ": expected features with " +
                                    std::to_string(extent.columns) + " channels from channel " +
                                    std::to_string(column) + " on, got " +
                                    std::to_string(channels));
      }
      const int64_t place = slot * length * channels + (rows_first ? column : column * length);
      rd::WindowJob job;
      job.extent = jobs.at(i, 1);
      job.start = jobs.at(i, 3);
      job.stop = jobs.at(i, 4);
      job.features = data + place * item;
      job.mask = column == 0 ? padding + slot * length : nullptr;
      job.slot_rows = length;
      job.dtype = type;
      job.layout = rows_first ? rd::Layout::kTC : rd::Layout::kCT;
      job.pitch = rows_first ? channels : length;
      job.resampled = jobs.at(i, 5);
      all.push_back(job);
    }
    const int64_t ticket = reader_->submit(all);
    held_[ticket] = {features, mask};
    return ticket;
  }

  // None, or (fault, job, extent, offset, row, column, value, number, reason) of the first failed
  // job.
  py::object wait(int64_t ticket) {
    rd::ReadError error;
    bool done = false;
    while (!done) {
      {
        const py::gil_scoped_release release;
        done = reader_->wait_for(ticket, 100, &error);
      }
      // Between two slices of waiting a Ctrl-C gets its turn.
      if (!done && PyErr_CheckSignals() != 0) {
        throw py::error_already_set();
      }
    }
    held_.erase(ticket);
    if (error.fault == rd::ReadFault::kNone) {
      return py::none();
    }
    return py::make_tuple(static_cast<int>(error.fault), error.job, error.extent, error.offset,
                          error.row, error.column, error.value, error.number, error.reason);
  }

  void cancel(int64_t ticket) {
    {
      const py::gil_scoped_release release;
      reader_->cancel(ticket);
    }
    held_.erase(ticket);
  }

  void close() {
    {
      const py::gil_scoped_release release;
      reader_->close();
    }
    held_.clear();
  }

  int open_files() const { return reader_->open_files(); }

 private:
  std::unordered_map<int64_t, std::pair<py::object, py::object>> held_;
  std::unique_ptr<rd::Reader> reader_;
};

void bind_reader(py::module_& m) {
  py::class_<PyReader>(m, "Reader",
                       "Threads that read windows of feature rows; see csrc/reader/reader.h.")
      .def(
          py::init<const std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, int, int>>&,
                   int, int, bool>(),
          py::arg("extents"), py::arg("threads"), py::arg("max_open_files"),
          py::arg("check_finite"))
      .def("submit", &PyReader::submit, py::arg("features").noconvert(),
           py::arg("mask").noconvert(), py::arg("jobs").noconvert(), py::arg("dtype"),
           py::arg("layout"))
      .def("wait", &PyReader::wait, py::arg("ticket"))
      .def("cancel", &PyReader::cancel, py::arg("ticket"))
      .def("close", &PyReader::close)
      .def_property_readonly("open_files", &PyReader::open_files);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of tal_fast. Importing it after torch also registers the tensor ops.";
  // A wrong TAL_FAST_ISA fails here, at import, and not in the middle of a run.
  tal_fast::cpu::selected_isa();
  bind_build_info(m);
  bind_evaluation(m);
  bind_reader(m);
}
