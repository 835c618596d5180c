// SPDX-License-Identifier: Apache-2.0
// _C_cuda: importing it registers the CUDA kernels of the ops; it says what it was compiled for.
#include <Python.h>

namespace {

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C_cuda",
                          "CUDA kernels of tal_fast.",
                          -1,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr &&
      (PyModule_AddStringConstant(module, "architectures", TAL_FAST_CUDA_ARCHITECTURES) < 0 ||
       PyModule_AddStringConstant(module, "compiler", TAL_FAST_CUDA_COMPILER) < 0)) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
