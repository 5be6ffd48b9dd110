// One emulated thread block: its threads are fibers of the calling thread, its shared memory is watched.
//
// A thread runs until a warp instruction or a barrier; the last one to arrive carries the instruction out. Shared
// memory holds NaNs until written, and every 4 bytes remember who wrote and who read them since which barrier, so that
// a missing barrier, a read of a copy not waited for or of memory nothing wrote, and an address out of bounds are
// errors whatever order the threads happen to run in.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace facesdk::host {

constexpr int LANES = 32;

class ThreadBlock {
 public:
  ThreadBlock(int threads, int shared_bytes)
      : threads_(threads), warps_(threads / LANES), shared_(shared_bytes), words_(shared_bytes / 4) {
    for (Thread &t : threads_) t.stack.reset(new char[STACK_BYTES]);
  }

  // Runs `body` as every thread of the block; throws the first error any of them meets.
  void run(const std::function<void()> &body) {
    current() = this;
    body_ = &body;
    std::fill(shared_.begin(), shared_.end(), 0xff);  // NaNs in fp16, bf16 and fp32
    std::fill(words_.begin(), words_.end(), Word());
    for (Thread &t : threads_) prepare(t);
    running_ = 0;
    threads_[0].started = true;
    swapcontext(&caller_, &threads_[0].context);
    current() = nullptr;
    if (!error_.empty()) throw std::runtime_error(error_);
  }

  static ThreadBlock *&current() {
    static thread_local ThreadBlock *block = nullptr;
    return block;
  }

  int thread() const { return running_; }

  void barrier() {
    threads_[running_].state = AT_BARRIER;
    if (++at_barrier_ < static_cast<int>(threads_.size())) return run_another();
    at_barrier_ = 0;
    epoch_++;
    for (Thread &t : threads_) t.state = READY;
  }

  void warp_barrier() {
    const int nothing = 0;
    together<int>("warp barrier", nothing, [this](const int **, int **) { warps_[running_ / LANES].epoch++; });
  }

  // One warp instruction: compute(inputs, outputs) sees the 32 lanes' operands when the last lane has arrived.
  template <class Out, class In, class Compute>
  Out together(const char *instruction, const In &in, Compute compute) {
    Warp &warp = warps_[running_ / LANES];
    const int lane = running_ % LANES;
    Out out{};
    if (warp.arrived == 0) warp.instruction = instruction;
    if (strcmp(warp.instruction, instruction) != 0) fail("lanes of a warp meet at different instructions");
    warp.in[lane] = &in;
    warp.out[lane] = &out;
    if (++warp.arrived < LANES) {
      threads_[running_].state = AT_WARP;
      run_another();
      return out;
    }
    warp.arrived = 0;
    compute(reinterpret_cast<const In **>(warp.in), reinterpret_cast<Out **>(warp.out));
    for (int i = 0; i < LANES; i++) threads_[running_ / LANES * LANES + i].state = READY;
    return out;
  }

  void read(uint32_t source, void *target, uint32_t bytes) {
    bounds(source, bytes);
    for (uint32_t i = source / 4; i < (source + bytes + 3) / 4; i++) watch_read(words_[i]);
    memcpy(target, &shared_[source], bytes);
  }

  void write(uint32_t target, const void *source, uint32_t bytes) {
    bounds(target, bytes);
    for (uint32_t i = target / 4; i < (target + bytes + 3) / 4; i++) watch_write(words_[i], bytes < 4);
    memcpy(&shared_[target], source, bytes);
  }

  // The target holds NaNs until the thread waits; the source is read only then.
  void copy_async(uint32_t target, const void *source, bool valid) {
    if (reinterpret_cast<uintptr_t>(source) % 16 && valid) fail("asynchronous copy from an unaligned address");
    const uint32_t poison[4] = {~0u, ~0u, ~0u, ~0u};
    write(target, poison, 16);
    for (int i = 0; i < 4; i++) words_[target / 4 + i].pending = true;
    threads_[running_].copies.push_back({target, valid ? source : nullptr});
  }

  void wait_copies() {
    for (const Copy &copy : threads_[running_].copies) {
      uint32_t data[4] = {0, 0, 0, 0};
      if (copy.source != nullptr) memcpy(data, copy.source, 16);
      for (int i = 0; i < 4; i++) words_[copy.target / 4 + i].pending = false;
      write(copy.target, data, 16);
    }
    threads_[running_].copies.clear();
  }

  [[noreturn]] static void fail(const std::string &what) { throw std::runtime_error(what); }

 private:
  static constexpr int STACK_BYTES = 128 * 1024;
  enum State { READY, AT_WARP, AT_BARRIER, DONE };

  struct Copy {
    uint32_t target;
    const void *source;  // null: zeros
  };
  struct Thread {
    ucontext_t context;
    jmp_buf resume;
    bool started = false;
    std::unique_ptr<char[]> stack;
    State state = READY;
    std::vector<Copy> copies;
  };
  struct Warp {
    int arrived = 0, epoch = 0;
    const char *instruction = "";
    const void *in[LANES];
    void *out[LANES];
  };
  struct Word {
    int writer = -1, write_epoch = 0, write_warp_epoch = 0;
    int read_epoch = -1;
    uint32_t readers = 0;  // warps that read in read_epoch
    bool pending = false;
  };

  static void prepare(Thread &t) {
    t.started = false;
    t.state = READY;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = STACK_BYTES;
    t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
  }

  // A context's first switch needs ucontext; later ones jump, which saves the system calls for signal masks. The
  // address sanitizer knows ucontext only.
  static void switch_threads(Thread &from, Thread &to) {
#if defined(__SANITIZE_ADDRESS__)
    swapcontext(&from.context, &to.context);
#else
    if (_setjmp(from.resume)) return;
    if (to.started) _longjmp(to.resume, 1);
    to.started = true;
    setcontext(&to.context);
#endif
  }

  static void enter() {
    ThreadBlock &block = *current();
    try {
      (*block.body_)();
      block.threads_[block.running_].state = DONE;
    } catch (const std::exception &error) {
      block.error_ = error.what();
      setcontext(&block.caller_);
    }
    block.run_another();
  }

  // Threads of the same warp first, so that warps drift apart as far as the barriers let them.
  void run_another() {
    const int count = static_cast<int>(threads_.size()), base = running_ / LANES * LANES, lane = running_ % LANES;
    int next = -1;
    for (int i = 1; i < LANES && next < 0; i++)
      if (threads_[base + (lane + i) % LANES].state == READY) next = base + (lane + i) % LANES;
    for (int i = LANES; i < count && next < 0; i++)
      if (threads_[(base + i) % count].state == READY) next = (base + i) % count;
    if (next < 0) return leave();
    Thread &from = threads_[running_];
    running_ = next;
    switch_threads(from, threads_[next]);
  }

  void leave() {
    for (const Thread &t : threads_)
      if (t.state != DONE) error_ = "deadlock: threads wait for others that never come";
    setcontext(&caller_);
  }

  void bounds(uint32_t address, uint32_t bytes) const {
    if (address % bytes) fail("unaligned shared memory address");
    if (address + bytes > shared_.size()) fail("shared memory address out of bounds");
  }

  bool ordered(const Word &w) const {
    const bool same_warp = w.writer / LANES == running_ / LANES;
    return w.write_epoch < epoch_ || w.writer == running_ ||
           (same_warp && w.write_warp_epoch < warps_[running_ / LANES].epoch);
  }

  void watch_read(Word &w) {
    if (w.writer < 0) fail("read of shared memory that nothing wrote");
    if (w.pending) fail("read of an asynchronous copy that nothing waited for");
    if (!ordered(w)) fail("read of another thread's write without a barrier between them");
    if (w.read_epoch != epoch_) w.readers = 0;
    w.read_epoch = epoch_;
    w.readers |= 1u << running_ / LANES;
  }

  // `part`: less than the word, which neighbours may then write at the same time.
  void watch_write(Word &w, bool part) {
    if (w.pending) fail("write over an asynchronous copy under way");
    if (w.read_epoch == epoch_ && (w.readers & ~(1u << running_ / LANES)))
      fail("write over what another warp reads without a barrier between them");
    if (w.writer >= 0 && !ordered(w) && !part) fail("two threads write one address without a barrier between them");
    w.writer = running_;
    w.write_epoch = epoch_;
    w.write_warp_epoch = warps_[running_ / LANES].epoch;
  }

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<uint8_t> shared_;
  std::vector<Word> words_;
  const std::function<void()> *body_ = nullptr;
  ucontext_t caller_;
  std::string error_;
  int running_ = 0, at_barrier_ = 0, epoch_ = 0;
};

}  // namespace facesdk::host
