// Threads: the library's own pool, one a process, or a team that the host program lends. Calls from several threads take turns.
#pragma once

#include <cstdint>
#include <type_traits>

#include "bitdistill.h"

namespace bitdistill {

// Threads that a parallel_for may use, the calling one included. Default: the CPUs this process may run on.
int num_threads();

// BD_ERROR_THREADS if out of range. Threads are started when first needed, not here.
int set_num_threads(int threads);

// Threads of the host program, see bd_set_team. Null: the library's own.
void set_team(bd_team team);

using Task = void (*)(void* context, int64_t index);

void parallel_for_impl(int64_t count, void* context, Task task);

// Runs body(0) .. body(count - 1), in no particular order, on all threads; returns when all are done. Inside a task it
// runs them one after another. If threads cannot be started, fewer do the work. `body` must not throw.
template <typename F>
void parallel_for(int64_t count, F&& body) {
  parallel_for_impl(count, const_cast<void*>(static_cast<const void*>(&body)),
                    [](void* context, int64_t index) { (*static_cast<std::remove_reference_t<F>*>(context))(index); });
}

}  // namespace bitdistill
