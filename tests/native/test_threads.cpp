// The thread pool: every task once, any number of threads, several callers, nested calls, and fork().
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "core/thread_pool.h"
#include "reference.h"

namespace {

using test::random_case;

void check_every_task_once(int64_t count) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
  bitdistill::parallel_for(count, [&](int64_t i) { seen[static_cast<size_t>(i)].fetch_add(1); });
  for (const auto& n : seen) CHECK(n.load() == 1);
}

void test_counts() {
  for (const int threads : {1, 2, 3, 8, 64, 1, 4}) {
    CHECK_OK(bd_set_num_threads(threads));
    CHECK(bd_get_num_threads() == threads);
    for (const int64_t count : {0, 1, 2, 3, 17, 1000}) {
      for (int repeat = 0; repeat < 20; ++repeat) check_every_task_once(count);
    }
  }
}

// Long enough apart that the workers have gone to sleep.
void test_sleeping_workers() {
  CHECK_OK(bd_set_num_threads(4));
  for (int i = 0; i < 10; ++i) {
    usleep(2000);
    check_every_task_once(100);
  }
}

void test_nested() {
  CHECK_OK(bd_set_num_threads(4));
  std::atomic<int> total{0};
  bitdistill::parallel_for(10, [&](int64_t) { bitdistill::parallel_for(10, [&](int64_t) { ++total; }); });
  CHECK(total == 100);
}

void test_several_callers() {
  CHECK_OK(bd_set_num_threads(3));
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([c] {
      test::Random random(static_cast<unsigned>(c));
      const test::Case made = random_case(random, BD_TERNARY, 300, 200, c % 3);
      const test::Packed packed = made.pack();
      for (int i = 0; i < 30; ++i) {
        const int64_t tokens = 1 + i % 20;
        std::vector<int8_t> x(static_cast<size_t>(tokens * made.cols));
        for (int8_t& v : x) v = static_cast<int8_t>(random());
        const std::vector<int32_t> expected = made.accumulate(x, tokens);
        std::vector<int32_t> acc(expected.size());
        CHECK_OK(bd_matmul_int32(packed.data(), packed.size(), x.data(), x.size(), tokens, acc.data(), acc.size()));
        CHECK(acc == expected);
      }
    });
  }
  std::thread resizer([] {
    for (int i = 0; i < 200; ++i) {
      CHECK_OK(bd_set_num_threads(1 + i % 5));
      usleep(100);
    }
  });
  for (std::thread& caller : callers) caller.join();
  resizer.join();
}

// The host's threads instead of the library's: as many as asked for, each call joined at its end.
std::atomic<int> team_calls{0};

void team_of_threads(void (*body)(void*), void* context, unsigned threads, unsigned flags) {
  CHECK(threads == 3 && flags == 0);
  ++team_calls;
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, context);
  body(context);
  for (std::thread& other : others) other.join();
}

void test_team(bool may_fork) {
  CHECK_OK(bd_set_num_threads(3));
  CHECK_OK(bd_set_team(team_of_threads));
  for (const int64_t count : {2, 3, 17, 1000}) check_every_task_once(count);
  CHECK(team_calls == 4);
  check_every_task_once(1);  // not worth a team
  std::atomic<int> total{0};
  bitdistill::parallel_for(10, [&](int64_t) { bitdistill::parallel_for(10, [&](int64_t) { ++total; }); });
  CHECK(total == 100 && team_calls == 5);
  const pid_t child = may_fork ? fork() : -1;
  if (child == 0) {  // the host's threads did not come along
    alarm(20);
    check_every_task_once(100);
    _exit(team_calls == 5 ? 0 : 2);
  }
  int status = -1;
  if (may_fork) CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK_OK(bd_set_team(nullptr));
  check_every_task_once(100);
  CHECK(team_calls == 5);
}

// Forks while another thread keeps the pool busy: the child must compute, and keep its number of threads.
void test_fork() {
  CHECK_OK(bd_set_num_threads(3));
  check_every_task_once(100);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) check_every_task_once(50);
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      alarm(20);
      if (bd_get_num_threads() != 3) _exit(2);
      for (int repeat = 0; repeat < 5; ++repeat) check_every_task_once(100);
      _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = true;
  busy.join();
}

}  // namespace

// Argument "no-fork": leave that test out. User-mode emulators abort in the child of a process with threads.
int main(int argc, char** argv) {
  test_counts();
  test_sleeping_workers();
  test_nested();
  test_several_callers();
  const bool may_fork = argc < 2 || std::strcmp(argv[1], "no-fork") != 0;
  test_team(may_fork);
  if (may_fork) test_fork();
  std::printf("threads: ok\n");
  return 0;
}
