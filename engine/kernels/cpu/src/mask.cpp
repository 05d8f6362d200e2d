// Removes tokens from a row of logits by a bitmask, as grammars give it: once a token and row.
#include <cstdint>
#include <cstring>

namespace {

typedef uint32_t Four __attribute__((vector_size(16)));

constexpr uint32_t kNever = 0xff800000;  // -infinity

}  // namespace

// Logits whose bit in `words` is 0 become -infinity; `num_tokens` need not be a multiple of 32.
extern "C" __attribute__((visibility("default"))) void draftline_mask(float* logits, const uint32_t* words,
                                                                      int32_t num_tokens) {
  const Four bits = {1, 2, 4, 8};
  int32_t token = 0;
  for (; token + 4 <= num_tokens; token += 4) {
    const uint32_t nibble = words[token / 32] >> (token % 32);
    if ((nibble & 15) == 15) continue;
    Four x;
    std::memcpy(&x, logits + token, sizeof x);
    const Four allowed = (Four)((bits & nibble) != 0);
    x = (x & allowed) | (~allowed & kNever);
    std::memcpy(logits + token, &x, sizeof x);
  }
  for (; token < num_tokens; ++token)
    if ((words[token / 32] >> (token % 32) & 1) == 0) std::memcpy(logits + token, &kNever, sizeof kNever);
}
