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
constexpr int kSpinsBeforeYield = 4000;
// A yield that takes so long has given the core to another program for a time slice: who sleeps gets it back at once.
constexpr auto kSlowYield = std::chrono::microseconds(200);
// In a phase the others are microseconds away; if not, one of them lost its core. Then sleep, and next time sooner:
// two threads that share a core would each spin while the other could work.
constexpr int kFewestSpins = 100, kMostSpins = 4000;

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
    : num_threads_(num_threads), phase_(num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
  is_closing_.store(true);
  epoch_.fetch_add(1);
  wake_all();
  for (auto& thread : threads_) thread.join();
}

void Pool::run(void (*job)(void*, int), void* argument, int max_phases) {
  const size_t wanted = static_cast<size_t>(max_phases) * num_threads_;
  if (counters_.size() < wanted) counters_ = std::vector<UnitCounter>(wanted);
  for (size_t i = 0; i < wanted; ++i) counters_[i].next.store(0, std::memory_order_relaxed);
  for (auto& phase : phase_) phase.number = 0;
  job_ = job;
  argument_ = argument;
  if (num_threads_ > 1) {
    epoch_.fetch_add(1);
    if (num_sleeping_.load() > 0) wake_all();
  }
  FlushDenormals flush;
  job(argument, 0);
  barrier(0);
}

void Pool::work(int thread) {
  FlushDenormals flush;
  for (uint64_t seen = 0; wait_for_job(seen);) {
    seen = epoch_.load(std::memory_order_acquire);
    job_(argument_, thread);
    barrier(thread);
  }
}

bool Pool::wait_for_job(uint64_t seen) {
  const auto start = Clock::now();
  for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
    pause();
    if (spins < kSpinsBeforeYield) continue;
    const auto before = Clock::now();
    sched_yield();
    const auto now = Clock::now();
    if (now - before < kSlowYield && now - start < kSpinBetweenJobs) continue;
    num_sleeping_.fetch_add(1);
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return epoch_.load() != seen; });
    num_sleeping_.fetch_sub(1);
  }
  return !is_closing_.load();
}

void Pool::barrier(int thread) {
  if (num_threads_ == 1) return;
  ThreadPhase& own = phase_[thread];
  const uint32_t sense = sense_.load(std::memory_order_relaxed) + 1;
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    num_arrived_.store(0, std::memory_order_relaxed);
    sense_.store(sense);
    if (num_sleeping_.load() > 0) wake_all();
    ++own.num_barriers;
    return;
  }
  const auto start = is_timing_ ? Clock::now() : Clock::time_point();
  if (!spin_until(sense, own.spins)) {
    num_sleeping_.fetch_add(1);
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return sense_.load() == sense; });
    num_sleeping_.fetch_sub(1);
  }
  if (is_timing_) own.waited += nanoseconds_since(start);
}

// True when all have arrived; false after `spins` looks, of which there will be half as many next time.
bool Pool::spin_until(uint32_t sense, int& spins) {
  for (int i = 0; i < spins; ++i) {
    if (sense_.load(std::memory_order_acquire) == sense) {
      spins = spins + kFewestSpins < kMostSpins ? spins + kFewestSpins : kMostSpins;
      return true;
    }
    pause();
  }
  spins = spins / 2 > kFewestSpins ? spins / 2 : kFewestSpins;
  return false;
}

void Pool::wake_all() {
  std::lock_guard<std::mutex> lock(mutex_);
  wake_.notify_all();
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
