// SPDX-License-Identifier: Apache-2.0
// Two classes of one name, one for each value of TAL_FAST_SIDE: what the test `one_definition` of
// CMakeLists.txt must find. Linked into nothing.
#include <memory>
#include <vector>

namespace tal_fast {

#if TAL_FAST_SIDE == 1
struct Scratch {
  std::vector<float> numbers;
};
#else
struct Scratch {
  std::unique_ptr<char[]> bytes;
  long size = 0;
};
#endif

#if TAL_FAST_SIDE == 1
size_t use_one() {
  return Scratch{}.numbers.size();
}
#else
long use_other() {
  return Scratch{}.size;
}
#endif

}  // namespace tal_fast
