// A small pool: the calling thread and num_threads - 1 others run one job together, phase by phase.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace draftline {

// Work of one phase is cut into units; each thread owns a range of them and steals from others' at its end.
struct alignas(64) UnitCounter {
  std::atomic<int32_t> next;
};

class Pool {
 public:
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return num_threads_; }

  // How many of them share the present job: fewer while other programs keep taking cores away.
  int num_active() const { return num_active_; }

  // Run job(argument, thread) on every thread and return when all have; at most max_phases barriers inside.
  void run(void (*job)(void*, int), void* argument, int max_phases);

  // Wait for the others at the end of a phase. Returns the nanoseconds waited where timing is on, else 0.
  void barrier(int thread);

  // The counters of a thread's next phase, one per thread; every active thread takes them in the same order.
  UnitCounter* next_counters(int thread) { return counters_.data() + num_threads_ * phase_[thread].number++; }

  void set_timing(bool is_on) { is_timing_ = is_on; }
  uint64_t take_barrier_nanoseconds();
  uint64_t take_num_barriers();

 private:
  struct alignas(64) ThreadPhase {
    int64_t number = 0;
    uint64_t waited = 0;
    std::atomic<uint64_t> stalled{0};  // nanoseconds, in this job, that somebody without a core was waited for
    uint64_t num_barriers = 0;
  };

  void work(int thread);
  void close();
  bool wait_for_job(uint64_t seen);
  void adapt(uint64_t job_nanoseconds);

  const int num_threads_;
  std::vector<UnitCounter> counters_;
  std::vector<ThreadPhase> phase_;
  void (*job_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  bool is_timing_ = false;
  int num_active_;
  int num_bad_jobs_ = 0;
  int jobs_until_all_ = 0;  // while fewer are active
  int jobs_apart_;
  // Number of the job << 8 | active threads: in one word, for a thread that is left out may look at any time.
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int32_t> num_arrived_{0};
  alignas(64) std::atomic<uint32_t> sense_{0};
  alignas(64) std::atomic<int32_t> num_sleeping_{0};
  std::atomic<bool> is_closing_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace draftline
