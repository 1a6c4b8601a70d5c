// What a system may answer to the request for AMX tiles, and that a process whose request was refused computes all the same.
#include "kernels/tile_permission.h"

#include <vector>

#include "check.h"

namespace {

using bitdistill::tiles_permitted;

constexpr int kGet = 0x1022, kRequest = 0x1023;

// The system call: answers to the request and to the question what was granted, and the features that it grants.
struct System {
  long request, get;
  unsigned long features;
  std::vector<int> asked = {};

  long operator()(int what, unsigned long argument) {
    asked.push_back(what);
    if (what == kRequest) {
      CHECK(argument == 18);
      return request;
    }
    CHECK(what == kGet);
    if (get == 0) *reinterpret_cast<unsigned long*>(argument) = features;
    return get;
  }
};

}  // namespace

int main() {
  System granting{0, 0, 1ul << 18 | 7};
  CHECK(tiles_permitted(granting));
  CHECK(granting.asked == (std::vector<int>{kRequest, kGet}));  // asked first: nothing is granted before
  CHECK(!tiles_permitted(System{-1, 0, 1ul << 18 | 7}));       // too old a system, a filter, small signal stacks
  CHECK(!tiles_permitted(System{0, -1, 0}));
  CHECK(!tiles_permitted(System{0, 0, 7}));                    // "yes", and then it is not there
  std::printf("tile permission: ok\n");
  return 0;
}
