// Linux lets a process use AMX tiles only after it has asked, because they make the saved state of a thread 8 KB larger. It
// may refuse: too old, too small an alternate signal stack somewhere in the process, a filter on system calls.
#pragma once

namespace bitdistill {

// `arch_prctl(what, argument)` is that system call, below 0 on failure. Asks and looks whether it was granted.
template <typename F>
bool tiles_permitted(F&& arch_prctl) {
  constexpr int kGetPermissions = 0x1022, kRequestPermission = 0x1023;  // ARCH_{GET,REQ}_XCOMP_PERM
  constexpr unsigned long kTileData = 18;                              // XFEATURE_XTILEDATA
  if (arch_prctl(kRequestPermission, kTileData) < 0) return false;
  unsigned long granted = 0;
  if (arch_prctl(kGetPermissions, reinterpret_cast<unsigned long>(&granted)) < 0) return false;
  return (granted >> kTileData & 1) != 0;
}

}  // namespace bitdistill
