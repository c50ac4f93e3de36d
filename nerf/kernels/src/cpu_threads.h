// A parallel loop: OpenMP where the compiler has it (torch's own pool then serves both), else plain threads per loop.
#pragma once
#include "common.h"
#if defined(_OPENMP)
#include <omp.h>
#else
#include <atomic>
#include <thread>
#include <vector>
#endif
#include <memory>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Denormals cost a hundred cycles each and mean nothing here: flushed inside our loops, the caller's mode restored after.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned saved;
  FlushDenormals() : saved(_mm_getcsr()) { _mm_setcsr(saved | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

// Calls body(task) for every task once. What a task computes must not depend on which thread runs it (law of sameness).
template <class Body>
static void parallel_for(int n_tasks, int n_threads, const Body& body) {
  if (n_threads > n_tasks) n_threads = n_tasks;
  if (n_threads <= 1) {
    FlushDenormals flush;
    for (int i = 0; i < n_tasks; ++i) body(i);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel num_threads(n_threads)
  {
    FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < n_tasks; ++i) body(i);
  }
#else
  std::atomic<int> next(0);
  auto work = [&]() {
    FlushDenormals flush;
    for (int i; (i = next++) < n_tasks;) body(i);
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < n_threads; ++t) threads.emplace_back(work);
  work();
  for (auto& t : threads) t.join();
#endif
}

// Memory of this thread that lasts: asked for once a task, for finding it takes a call.
template <class T>
static T& thread_room() {
  static thread_local std::unique_ptr<T> room(new T);
  return *room;
}
