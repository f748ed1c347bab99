// Streams arrays through a compiled model: a record at a time, one clock each where there is one.
// The same for CXXRTL and Verilator; the generated ports.h names the model and lists its ports:
//   UNIT              the model's class
//   INPUTS, OUTPUTS   PORT(index, member, width, count, signed) for each array, in its order
//   IDLE              ZERO(member, width) for each input that no array drives
//   CLOCKED, TAKEN    the clocked protocol: this input is high where a record is offered
//   STEP              this output tells of a new answer; else each record has one, a clock later
//   WITHIN            this output is high only at a step: alone it is a step too many
//   DELTAS            CXXRTL only: this logic needs several passes for each level of the clock

#include "ports.h"
#include <cstddef>
#include <cstdint>
#include <memory>

#ifdef VERILATOR
#include "verilated.h"
double sc_time_stamp() { return 0; }
#endif

namespace {

constexpr int PATIENCE = 64;  // clocks without a record after the last one: more answers are lost

// A port as words of 32 bits, the lowest first.
template <int WORDS> struct Words { uint32_t at[WORDS]; };

template <int WIDTH, int COUNT, int WORDS> inline Words<WORDS> pack(const int64_t *codes) {
  Words<WORDS> out;
  unsigned __int128 bits = 0;
  int held = 0, word = 0;
  for (int i = 0; i < COUNT; i++) {
    const uint64_t code = uint64_t(codes[i]) << (64 - WIDTH) >> (64 - WIDTH);
    bits |= (unsigned __int128)code << held;
    for (held += WIDTH; held >= 32; held -= 32, bits >>= 32)
      out.at[word++] = uint32_t(bits);
  }
  if (held > 0) out.at[word] = uint32_t(bits);
  return out;
}

template <int WIDTH, int COUNT, bool SIGNED, int WORDS>
inline void unpack(const Words<WORDS> &in, int64_t *codes) {
  unsigned __int128 bits = 0;
  int held = 0, word = 0;
  for (int i = 0; i < COUNT; i++) {
    for (; held < WIDTH; held += 32)
      bits |= (unsigned __int128)in.at[word++] << held;
    const uint64_t code = uint64_t(bits) << (64 - WIDTH);
    codes[i] = SIGNED ? int64_t(code) >> (64 - WIDTH) : int64_t(code >> (64 - WIDTH));
    bits >>= WIDTH;
    held -= WIDTH;
  }
}

// What the two compilers make of a port.
template <class T, int WORDS> inline void write(T &port, const Words<WORDS> &words) {
  if constexpr (requires { port.data; }) {
    for (int i = 0; i < WORDS; i++) port.data[i] = words.at[i];
  } else if constexpr (requires { port[0]; }) {
    for (int i = 0; i < WORDS; i++) port[i] = words.at[i];
  } else if constexpr (WORDS == 1) {
    port = T(words.at[0]);
  } else {
    port = T(words.at[0] | uint64_t(words.at[1]) << 32);
  }
}

template <int WORDS, class T> inline Words<WORDS> read(const T &port) {
  Words<WORDS> words;
  if constexpr (requires { port.curr; }) {
    for (int i = 0; i < WORDS; i++) words.at[i] = port.curr.data[i];
  } else if constexpr (requires { port.data; }) {
    for (int i = 0; i < WORDS; i++) words.at[i] = port.data[i];
  } else if constexpr (requires { port[0]; }) {
    for (int i = 0; i < WORDS; i++) words.at[i] = port[i];
  } else {
    words.at[0] = uint32_t(port);
    if constexpr (WORDS > 1) words.at[1] = uint32_t(uint64_t(port) >> 32);
  }
  return words;
}

constexpr int words_of(int bits) { return (bits + 31) / 32; }

struct Model {
#ifdef VERILATOR
  VerilatedContext context;
  UNIT unit{&context};
  bool settled = true;
  void settle() {
#ifdef CLOCKED
    unit.clk_i = 0;
#endif
    unit.eval();
  }
#ifdef CLOCKED
  void edge() {
    unit.clk_i = 1;
    unit.eval();
  }
#endif
#else
  UNIT unit;
  bool settled = true;
#ifdef DELTAS
  // Logic that one pass does not settle, such as a bus whose bits depend on one another.
  void pass(int clock) {
#ifdef CLOCKED
    unit.p_clk__i.data[0] = clock;
#endif
    int passes = 0;
    do unit.eval();
    while (unit.commit() && ++passes < DELTAS);
    settled &= passes < DELTAS;
  }
  void settle() { pass(0); }
  void edge() { pass(1); }
#else
  // One pass evaluates the outputs from the registers as they are and the registers as they will
  // be; the edge commits these. The model takes every pass for a rising edge.
  void settle() {
#ifdef CLOCKED
    unit.p_clk__i.data[0] = 1;
#endif
    unit.eval();
  }
  void edge() { unit.commit(); }
#endif
#endif

  void bit(auto &port, bool value) { write(port, Words<1>{{value}}); }

  void drive(const int64_t *const *in, int64_t i) {
#define PORT(index, member, width, count, is_signed) \
    write(unit.member, pack<width, count, words_of((width) * (count))>(in[index] + i * (count)));
    INPUTS
#undef PORT
  }

  void collect(int64_t *const *out, int64_t i) {
#define PORT(index, member, width, count, is_signed) \
    unpack<width, count, is_signed>(read<words_of((width) * (count))>(unit.member), \
                                    out[index] + i * (count));
    OUTPUTS
#undef PORT
  }
};

}  // namespace

// Returns how many answers came; -1 where the logic has a loop that does not settle.
extern "C" int64_t stream(int64_t records, const int64_t *const *in, int64_t *const *out) {
  auto model = std::make_unique<Model>();
  auto &unit = model->unit;
#define ZERO(member, width) write(unit.member, Words<words_of(width)>{});
  IDLE
#undef ZERO
  int64_t answers = 0;
#ifdef CLOCKED
  model->bit(unit.RESET, false);
  for (int i = 0; i < 2; i++) {
    model->settle();
    model->edge();
  }
  model->bit(unit.RESET, true);
#ifdef ENABLE
  model->bit(unit.ENABLE, true);
#endif
  bool taken = false;
  for (int64_t i = 0; i < records + PATIENCE; i++) {
    if (i < records) model->drive(in, i);
    model->bit(unit.TAKEN, i < records);
    model->settle();
#ifdef STEP
    taken = read<1>(unit.STEP).at[0];
#endif
#ifdef WITHIN
    taken |= read<1>(unit.WITHIN).at[0] != 0;
#endif
    if (taken && answers++ < records) model->collect(out, answers - 1);
    taken = i < records;
    model->edge();
  }
#else
  for (; answers < records; answers++) {
    model->drive(in, answers);
    model->settle();
    model->collect(out, answers);
  }
#endif
  return model->settled ? answers : -1;
}
