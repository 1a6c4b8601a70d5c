#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace bitdistill {
namespace {

// A worker that has nothing to do spins this long before it sleeps. It bridges the gap between two matrix products of a
// decoder (waking a sleeper costs several microseconds), and is short against anything else the CPU could be given to.
constexpr int64_t kSpinNanoseconds = 50'000;

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  const long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
#else
  const long n = sysconf(_SC_NPROCESSORS_ONLN);
#endif
  return n < 1 ? 1 : n > BD_MAX_THREADS ? BD_MAX_THREADS : static_cast<int>(n);
}

// The gate tells the workers which job is open and counts those that have entered it:
//   generation (32 bits) | open (1 bit) | entered (31 bits).
// The caller closes the gate when no task is left and then waits only for workers that are inside: one that the system
// has not scheduled in time does not delay the call, and a late one can never see the next job's tasks as the last's.
constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kEnteredMask = kOpen - 1;
constexpr int kGenerationShift = 32;

struct Pool {
  std::atomic<uint64_t> gate{0};
  std::atomic<int64_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<int> limit{1};     // threads in use, the caller included
  std::atomic<int> sleepers{0};
  std::atomic<bd_team> team{nullptr};  // the host's threads, used instead of workers
  int64_t count = 0;
  void* context = nullptr;
  Task task = nullptr;

  pthread_mutex_t call = PTHREAD_MUTEX_INITIALIZER;  // held while a job runs
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int workers = 0;               // started so far; guarded by `call`
};

struct Worker {
  Pool* pool;
  int index;
};

// Never destroyed: workers may still look at it while the process ends.
std::atomic<Pool*> g_pool{nullptr};
pthread_once_t g_once = PTHREAD_ONCE_INIT;
thread_local bool t_in_task = false;

void run_tasks(Pool* pool) {
  const bool outer = t_in_task;
  t_in_task = true;
  for (;;) {
    const int64_t i = pool->next.fetch_add(1, std::memory_order_relaxed);
    if (i >= pool->count) break;
    pool->task(pool->context, i);
  }
  t_in_task = outer;
}

void run_tasks_of(void* pool) { run_tasks(static_cast<Pool*>(pool)); }

bool open_for(const Pool* pool, int index, uint64_t gate, uint64_t seen) {
  return (gate & kOpen) != 0 && (gate >> kGenerationShift) != seen && index < pool->limit.load(std::memory_order_relaxed);
}

void* worker_main(void* argument) {
  const Worker self = *static_cast<Worker*>(argument);
  delete static_cast<Worker*>(argument);
  Pool* const pool = self.pool;
  uint64_t seen = 0;
  for (;;) {
    uint64_t gate = pool->gate.load(std::memory_order_acquire);
    if (!open_for(pool, self.index, gate, seen)) {
      const int64_t deadline = now_nanoseconds() + kSpinNanoseconds;
      do {
        for (int i = 0; i < 32 && !open_for(pool, self.index, gate, seen); ++i) {
          cpu_relax();
          gate = pool->gate.load(std::memory_order_acquire);
        }
      } while (!open_for(pool, self.index, gate, seen) && now_nanoseconds() < deadline);
    }
    if (!open_for(pool, self.index, gate, seen)) {
      pthread_mutex_lock(&pool->sleep);
      // Sequentially consistent, as is the caller's store of the gate and its load of `sleepers`: one of the two sides
      // sees the other, so no wake-up is lost.
      pool->sleepers.fetch_add(1);
      while (!open_for(pool, self.index, gate = pool->gate.load(), seen)) {
        pthread_cond_wait(&pool->wake, &pool->sleep);
      }
      pool->sleepers.fetch_sub(1);
      pthread_mutex_unlock(&pool->sleep);
    }
    if (!pool->gate.compare_exchange_strong(gate, gate + 1, std::memory_order_acq_rel)) continue;
    seen = gate >> kGenerationShift;
    run_tasks(pool);
    pool->done.fetch_add(1, std::memory_order_release);
  }
  return nullptr;
}

// Starts the missing workers, without the process's signals. Fewer than asked for is not an error.
void start_workers(Pool* pool, int wanted) {
  if (pool->workers >= wanted) return;
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  while (pool->workers < wanted) {
    Worker* worker = new (std::nothrow) Worker{pool, pool->workers + 1};
    pthread_t thread;
    if (worker == nullptr || pthread_create(&thread, &attributes, worker_main, worker) != 0) {
      delete worker;
      break;
    }
    ++pool->workers;
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

// fork() copies only the calling thread. It waits for a running job, so that the child's memory is at rest; the child
// leaves the old pool alone and starts a new one of the same size. The host's threads are gone as well, so it has its own.
void before_fork() {
  Pool* pool = g_pool.load();
  if (pool != nullptr && !t_in_task) pthread_mutex_lock(&pool->call);
}

void after_fork_in_parent() {
  Pool* pool = g_pool.load();
  if (pool != nullptr && !t_in_task) pthread_mutex_unlock(&pool->call);
}

void after_fork_in_child() {
  const Pool* old = g_pool.load();
  Pool* fresh = new (std::nothrow) Pool;
  if (fresh != nullptr && old != nullptr) fresh->limit.store(old->limit.load());
  g_pool.store(fresh);  // null: everything runs on the calling thread
  t_in_task = false;
}

void create_pool() {
  Pool* pool = new (std::nothrow) Pool;
  if (pool == nullptr) return;
  pool->limit.store(available_cpus());
  g_pool.store(pool);
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

Pool* get_pool() {
  pthread_once(&g_once, create_pool);
  return g_pool.load(std::memory_order_acquire);
}

}  // namespace

int num_threads() {
  Pool* pool = get_pool();
  return pool == nullptr ? 1 : pool->limit.load();
}

int set_num_threads(int threads) {
  if (threads < 1 || threads > BD_MAX_THREADS) return BD_ERROR_THREADS;
  Pool* pool = get_pool();
  if (pool == nullptr) return BD_ERROR_OUT_OF_MEMORY;
  pool->limit.store(threads);
  return BD_OK;
}

void set_team(bd_team team) {
  if (Pool* pool = get_pool()) pool->team.store(team);
}

void parallel_for_impl(int64_t count, void* context, Task task) {
  Pool* pool = count > 1 && !t_in_task ? get_pool() : nullptr;
  if (pool == nullptr || pool->limit.load(std::memory_order_relaxed) < 2) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  pthread_mutex_lock(&pool->call);
  pool->count = count;
  pool->context = context;
  pool->task = task;
  pool->next.store(0, std::memory_order_relaxed);
  if (const bd_team team = pool->team.load(std::memory_order_relaxed)) {
    // Always as many as there are: a GOMP team that shrinks ends threads, and starts them again when it grows.
    team(run_tasks_of, pool, static_cast<unsigned>(pool->limit.load()), 0);
    pthread_mutex_unlock(&pool->call);
    return;
  }
  start_workers(pool, pool->limit.load() - 1);
  pool->done.store(0, std::memory_order_relaxed);
  // Generation 0 is what a new worker has "seen": skip it when the counter wraps.
  uint64_t generation = ((pool->gate.load(std::memory_order_relaxed) >> kGenerationShift) + 1) & 0xffffffffu;
  if (generation == 0) generation = 1;
  pool->gate.store(generation << kGenerationShift | kOpen);
  if (pool->sleepers.load() > 0) {
    pthread_mutex_lock(&pool->sleep);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep);
  }
  run_tasks(pool);
  const uint64_t entered = pool->gate.fetch_and(~kOpen, std::memory_order_acq_rel) & kEnteredMask;
  for (int spins = 0; pool->done.load(std::memory_order_acquire) != entered; ++spins) {
    // A worker that holds the last task may be waiting for this very CPU.
    if (spins < 4096) cpu_relax();
    else sched_yield();
  }
  pthread_mutex_unlock(&pool->call);
}

}  // namespace bitdistill
