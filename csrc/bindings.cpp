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
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "evaluation/average_precision.h"
#include "reader/reader.h"

namespace py = pybind11;

namespace {

std::vector<std::string> isa_names(const std::vector<tal_fast::Isa>& isas) {
  std::vector<std::string> names;
  for (const tal_fast::Isa isa : isas) {
    names.emplace_back(tal_fast::isa_name(isa));
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
  info["isas_available"] = isa_names(tal_fast::available_isas());
  info["isa"] = tal_fast::isa_name(tal_fast::selected_isa());
  info["cuda"] = false;
  info["cuda_reason"] = TAL_FAST_CUDA_REASON;
  return info;
}

void bind_build_info(py::module_& m) {
  m.def("build_info", &build_info, "How this library was built and which instruction set it uses.");
}

// ---- evaluation ---------------------------------------------------------------------------------

// noconvert() on every argument: an array of another dtype or layout is a TypeError, never a copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
const T* column(const Array<T>& array, const char* name, py::ssize_t size) {
  if (array.ndim() != 1 || array.shape(0) != size) {
    throw py::value_error("average_precision: expected " + std::string(name) + " of shape [" +
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

py::tuple average_precision(const Array<int64_t>& gt_video, const Array<int64_t>& gt_label,
                            const Array<double>& gt_start, const Array<double>& gt_end,
                            const Array<int64_t>& video, const Array<int64_t>& label,
                            const Array<double>& start, const Array<double>& end,
                            const Array<double>& score, int64_t num_videos, int64_t num_classes,
                            const Array<double>& thresholds, bool guard_union, int num_threads) {
  namespace ev = tal_fast::evaluation;
  ev::Problem problem;
  const py::ssize_t num_gt = gt_video.size();
  const py::ssize_t num_det = video.size();
  problem.ground_truth = {num_gt, column(gt_video, "gt_video", num_gt),
                          column(gt_label, "gt_label", num_gt),
                          column(gt_start, "gt_start", num_gt), column(gt_end, "gt_end", num_gt)};
  problem.detections = {num_det,
                        column(video, "video", num_det),
                        column(label, "label", num_det),
                        column(start, "start", num_det),
                        column(end, "end", num_det),
                        column(score, "score", num_det)};
  problem.num_videos = num_videos;
  problem.num_classes = num_classes;
  problem.num_thresholds = thresholds.size();
  problem.thresholds = column(thresholds, "thresholds", thresholds.size());
  problem.rules.guard_union = guard_union;
  ev::Result result;
  {
    // The arguments keep the arrays alive; a std::invalid_argument becomes a ValueError.
    const py::gil_scoped_release release;
    result = ev::average_precision(problem, num_threads);
  }
  const std::vector<py::ssize_t> cells{num_classes, thresholds.size()};
  return py::make_tuple(to_numpy(result.ap, cells), to_numpy(result.true_positives, cells),
                        to_numpy(result.num_ground_truth, {num_classes}),
                        to_numpy(result.num_detections, {num_classes}),
                        to_numpy(result.hits, {num_det}));
}

void bind_evaluation(py::module_& m) {
  m.def("average_precision", &average_precision, py::arg("gt_video").noconvert(),
        py::arg("gt_label").noconvert(), py::arg("gt_start").noconvert(),
        py::arg("gt_end").noconvert(), py::arg("video").noconvert(), py::arg("label").noconvert(),
        py::arg("start").noconvert(), py::arg("end").noconvert(), py::arg("score").noconvert(),
        py::arg("num_videos"), py::arg("num_classes"), py::arg("thresholds").noconvert(),
        py::arg("guard_union"), py::arg("num_threads"),
        "Average precision per class and threshold; csrc/evaluation/average_precision.h has the "
        "rule. Returns (ap, true_positives, num_ground_truth, num_detections, hits).");
}

// ---- reader -------------------------------------------------------------------------------------

// A Reader plus references to the arrays that its threads write to: they live until their ticket is
// waited for or cancelled, or the threads are joined, whatever Python does with its own references.
class PyReader {
 public:
  PyReader(const std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, int, int>>& extents,
           int threads, int max_open_files, bool check_finite) {
    std::vector<tal_fast::Extent> all;
    all.reserve(extents.size());
    for (const auto& [path, offset, rows, columns, dtype, layout] : extents) {
      all.push_back({path, offset, rows, columns, static_cast<tal_fast::DType>(dtype),
                     static_cast<tal_fast::Layout>(layout)});
    }
    reader_ =
        std::make_unique<tal_fast::Reader>(std::move(all), threads, max_open_files, check_finite);
  }

  ~PyReader() { reader_->close(); }  // before held_: no thread may write to a freed array
  PyReader(const PyReader&) = delete;
  PyReader& operator=(const PyReader&) = delete;

  int64_t submit(py::array_t<float, py::array::c_style>& features,
                 py::array_t<bool, py::array::c_style>& mask,
                 const py::array_t<int64_t, py::array::c_style>& windows) {
    if (features.ndim() != 3 || mask.ndim() != 2 || windows.ndim() != 2 || windows.shape(1) != 3 ||
        mask.shape(0) != features.shape(0) || mask.shape(1) != features.shape(1) ||
        windows.shape(0) > features.shape(0)) {
      throw std::invalid_argument(
          "reader: expected features [B, L, C], mask [B, L] and windows [<= B, 3]");
    }
    const int64_t length = features.shape(1);
    const int64_t channels = features.shape(2);
    float* const data = features.mutable_data();
    auto* const padding = reinterpret_cast<uint8_t*>(mask.mutable_data());
    std::vector<tal_fast::WindowJob> jobs;
    for (py::ssize_t i = 0; i < windows.shape(0); ++i) {
      const int64_t extent = windows.at(i, 0);
      if (reader_->extent(extent).columns != channels) {
        throw std::invalid_argument("reader: " + reader_->extent(extent).path +
                                    ": expected features with " +
                                    std::to_string(reader_->extent(extent).columns) +
                                    " channels, got " + std::to_string(channels));
      }
      jobs.push_back({extent, windows.at(i, 1), windows.at(i, 2), data + i * length * channels,
                      padding + i * length, length});
    }
    const int64_t ticket = reader_->submit(jobs);
    held_[ticket] = {features, mask};
    return ticket;
  }

  // None, or (fault, window, extent, offset, row, column, value, reason) of the first failed
  // window.
  py::object wait(int64_t ticket) {
    tal_fast::ReadError error;
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
    if (error.fault == tal_fast::ReadFault::kNone) {
      return py::none();
    }
    return py::make_tuple(static_cast<int>(error.fault), error.job, error.extent, error.offset,
                          error.row, error.column, error.value, error.reason);
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
  std::unique_ptr<tal_fast::Reader> reader_;
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
           py::arg("mask").noconvert(), py::arg("windows").noconvert())
      .def("wait", &PyReader::wait, py::arg("ticket"))
      .def("cancel", &PyReader::cancel, py::arg("ticket"))
      .def("close", &PyReader::close)
      .def_property_readonly("open_files", &PyReader::open_files);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of tal_fast. Importing it after torch also registers the tensor ops.";
  // A wrong TAL_FAST_ISA fails here, at import, and not in the middle of a run.
  tal_fast::selected_isa();
  bind_build_info(m);
  bind_evaluation(m);
  bind_reader(m);
}
