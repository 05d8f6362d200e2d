#include "threads.h"

#include <sched.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace draftline {
namespace {

using Clock = std::chrono::steady_clock;

// Waking a sleeping virtual core costs up to half a millisecond, a busy server's next step comes sooner.
constexpr auto kSpinBetweenJobs = std::chrono::milliseconds(3);
// In a phase the others are microseconds away; if not, one of them lost its core: let it run here.
constexpr int kSpinsBeforeYield = 4000;
// Three jobs in a row that lose a quarter of their time so: go on with one thread less, and look again after
// more and more jobs. No bit of a result depends on the number.
constexpr int kBadJobs = 3;
constexpr int kFirstJobsApart = 64, kMostJobsApart = 1024;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

uint64_t nanoseconds_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

// Denormals cost a hundred cycles each and mean nothing here; flushed everywhere they are also the same
// everywhere. Restores the caller's mode at the end.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

}  // namespace

Pool::Pool(int num_threads)
    : num_threads_(num_threads), phase_(num_threads), num_active_(num_threads), jobs_apart_(kFirstJobsApart) {
  try {
    for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // the system has no more of them: those that run already must end first
    close();
    throw;
  }
}

Pool::~Pool() { close(); }

void Pool::close() {
  is_closing_.store(true);
  epoch_.fetch_add(1 << 8);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  for (auto& thread : threads_) thread.join();
}

void Pool::run(void (*job)(void*, int), void* argument, int max_phases) {
  const size_t wanted = static_cast<size_t>(max_phases) * num_threads_;
  if (counters_.size() < wanted) counters_ = std::vector<UnitCounter>(wanted);
  for (size_t i = 0; i < wanted; ++i) counters_[i].next.store(0, std::memory_order_relaxed);
  for (auto& phase : phase_) {
    phase.number = 0;
    phase.stalled.store(0, std::memory_order_relaxed);
  }
  const auto start = Clock::now();
  job_ = job;
  argument_ = argument;
  if (num_threads_ > 1) {
    epoch_.store(((epoch_.load() >> 8) + 1) << 8 | num_active_);
    if (num_sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }
  FlushDenormals flush;
  job(argument, 0);
  barrier(0);
  adapt(nanoseconds_since(start));
}

void Pool::adapt(uint64_t job_nanoseconds) {
  if (num_active_ < num_threads_ && --jobs_until_all_ <= 0) {
    num_active_ = num_threads_;
    return;
  }
  uint64_t stalled = 0;
  for (const auto& phase : phase_) stalled += phase.stalled.load(std::memory_order_relaxed);
  if (4 * stalled < job_nanoseconds) {
    if (num_active_ == num_threads_ && num_bad_jobs_ == 0 && jobs_apart_ > kFirstJobsApart) --jobs_apart_;
    num_bad_jobs_ = 0;
  } else if (++num_bad_jobs_ >= kBadJobs && num_active_ > 1) {
    --num_active_;
    num_bad_jobs_ = 0;
    jobs_until_all_ = jobs_apart_;
    jobs_apart_ = 2 * jobs_apart_ < kMostJobsApart ? 2 * jobs_apart_ : kMostJobsApart;
  }
}

void Pool::work(int thread) {
  FlushDenormals flush;
  for (uint64_t seen = 0; wait_for_job(seen);) {
    seen = epoch_.load(std::memory_order_acquire);
    if (thread >= static_cast<int>(seen & 0xff)) continue;  // a job without this thread, over perhaps already
    job_(argument_, thread);
    barrier(thread);
  }
}

bool Pool::wait_for_job(uint64_t seen) {
  const auto start = Clock::now();
  for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
    pause();
    if (spins < kSpinsBeforeYield) continue;
    sched_yield();
    if ((spins & 15) == 0 && Clock::now() - start > kSpinBetweenJobs) {
      num_sleeping_.fetch_add(1);
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return epoch_.load() != seen; });
      num_sleeping_.fetch_sub(1);
    }
  }
  return !is_closing_.load();
}

void Pool::barrier(int thread) {
  if (num_active_ == 1) return;
  ThreadPhase& own = phase_[thread];
  const uint32_t sense = sense_.load(std::memory_order_relaxed) + 1;
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == num_active_ - 1) {
    num_arrived_.store(0, std::memory_order_relaxed);
    sense_.store(sense, std::memory_order_release);
    ++own.num_barriers;
    return;
  }
  const auto start = is_timing_ ? Clock::now() : Clock::time_point();
  Clock::time_point stall;
  int spins = 0;
  // Later senses count too: a thread that the next job leaves out may look after it has begun.
  for (; static_cast<int32_t>(sense_.load(std::memory_order_acquire) - sense) < 0; ++spins) {
    pause();
    if (spins < kSpinsBeforeYield) continue;
    if (spins == kSpinsBeforeYield) stall = Clock::now();
    sched_yield();
  }
  if (spins > kSpinsBeforeYield) own.stalled.store(nanoseconds_since(stall) + own.stalled.load());
  if (is_timing_) own.waited += nanoseconds_since(start);
}

uint64_t Pool::take_barrier_nanoseconds() {
  uint64_t sum = 0;
  for (auto& phase : phase_) {
    sum += phase.waited;
    phase.waited = 0;
  }
  return sum;
}

uint64_t Pool::take_num_barriers() {
  uint64_t sum = 0;
  for (auto& phase : phase_) {
    sum += phase.num_barriers;
    phase.num_barriers = 0;
  }
  return sum;
}

}  // namespace draftline
