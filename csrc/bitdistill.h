// Public C ABI of the native kernels: ternary, int8 and int4 weights times int8 activations, on CPUs.
//
// Rules that hold for every function here:
//  - It returns a bd_status (0 is success) unless it only reads a constant; bd_strerror gives the text of a status.
//  - It checks every size, pointer and value before it reads or writes through them. Nothing in a weight, a scale or a
//    header can make the library touch memory outside the buffers whose sizes the caller passed.
//  - It never throws, never aborts, never keeps a pointer after it returns (a decoder, which borrows its weights, is the
//    one exception), and allocates only scratch and caches of its own.
//  - It may be called from any number of threads at once, and after fork().
//
// Arithmetic, the same on every instruction set, bit for bit:
//    v    = norm_weight ? x * (1 / sqrt(mean(x^2) + eps)) * norm_weight : x     (the mean in float64, v in float32)
//    s    = 127 * (1 / max(max|v|, 1e-5))                                       (float32, as torch evaluates 127 / max)
//    x_q  = clip(round_half_even(v * s), -128, 127)
//    acc  = x_q . W, exact in int32, one sum a group of columns
//    y    = (sum over groups of acc * weight_scale) * (1 / s) + bias
// A token whose v holds a NaN or an infinity has x_q = 0, s = NaN and therefore NaN in all its outputs; the other tokens
// of the call are not affected.
#ifndef BITDISTILL_H
#define BITDISTILL_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BD_API __declspec(dllexport)
#else
#define BD_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised when a signature or the layout of a packed weight changes: a caller built for another version must refuse.
#define BD_ABI_VERSION 9

typedef enum bd_status {
  BD_OK = 0,
  BD_ERROR_NULL_POINTER = 1,
  BD_ERROR_SHAPE = 2,             // a size is zero, negative, above the limits, or two sizes disagree
  BD_ERROR_BUFFER_SIZE = 3,       // a buffer has not the size that its shape asks for
  BD_ERROR_ALIGNMENT = 4,         // a packed weight does not start at a multiple of BD_ALIGNMENT
  BD_ERROR_ARGUMENT = 5,          // an enum or flag has no meaning
  BD_ERROR_CODE = 6,              // a weight code that no weight has (2-bit code 3, int8 -128)
  BD_ERROR_SCALE = 7,             // a scale that is not finite
  BD_ERROR_HEADER = 8,            // not a weight packed by this version of the library
  BD_ERROR_INDEX = 9,             // a row index out of range
  BD_ERROR_ISA = 10,              // unknown instruction set, or one that this CPU or this build lacks
  BD_ERROR_OUT_OF_MEMORY = 11,
  BD_ERROR_THREADS = 12,          // the number of threads is out of range
  BD_ERROR_CONTEXT = 13,          // a sequence would grow beyond max_positions
  BD_ERROR_MODEL = 14,            // the parts of a decoder do not fit together
} bd_status;

// Inputs: the first two. Keys and values: all but BD_BFLOAT16; BD_SCALED_INT8 is 8-bit integers and a float32 scale for every vector.
typedef enum bd_dtype { BD_FLOAT32 = 0, BD_BFLOAT16 = 1, BD_FLOAT16 = 2, BD_SCALED_INT8 = 3 } bd_dtype;

// Kinds of weights. Every instruction set computes with every kind, from the same packed form.
typedef enum bd_format {
  BD_TERNARY = 0,  // {-1, 0, 1}, 2 bits; one scale for all, a row, or a group of 64 or 128 columns
  BD_INT8 = 1,     // [-127, 127]; one scale a row
  BD_INT4 = 2,     // [-8, 7]; one scale a group of 32 columns
  BD_TERNARY_DENSE = 3,  // {-1, 0, 1}, 1.6 bits; one scale for all or a row
} bd_format;

// What the rows of a bd_table are.
typedef enum bd_table_kind {
  BD_TABLE_PACKED = 0,  // packed by a function below
  BD_TABLE_FLOAT32 = 1,
  BD_TABLE_BFLOAT16 = 2,
  BD_TABLE_FLOAT16 = 3,
  BD_TABLE_SPLIT = 4,  // an embedding or output head packed by bd_split_pack_rows
} bd_table_kind;

#define BD_ALIGNMENT 64
#define BD_MAX_ROWS (INT64_C(1) << 24)
#define BD_MAX_COLS (INT64_C(1) << 17)  // keeps every int32 sum exact, for the widest weight
#define BD_MAX_TOKENS (INT64_C(1) << 24)
#define BD_MAX_THREADS 256

typedef struct bd_weight_info {
  int32_t format;        // bd_format
  int32_t tensor_scale;  // 1: a single scale for all rows
  int64_t rows;
  int64_t cols;
  int64_t group_size;    // 0: one scale a row (or one a tensor)
  int64_t groups;
} bd_weight_info;

// ---- Library ---------------------------------------------------------------------------------------------------------
BD_API int bd_abi_version(void);
BD_API const char* bd_version(void);
BD_API const char* bd_strerror(int status);

// The structures of this header as the compiler laid them out, for callers that declare them in another language. Rows in the order of
// the header: of each structure one for the whole, then one a field.
typedef struct bd_layout_row {
  const char* structure;
  const char* field;  // "": the structure
  size_t offset;
  size_t bytes;
} bd_layout_row;
BD_API int bd_layout(const bd_layout_row** rows, size_t* count);

// Instruction set in use. The first use picks the best that the CPU has, or what HF_BITDISTILL_ISA names
// (scalar, avx2, avxvnni, avx512vnni, amx, neon, i8mm). BD_ERROR_ISA if that name is unknown or cannot run here; then every
// computing function fails the same way, until bd_set_isa succeeds.
BD_API int bd_get_isa(const char** name);
BD_API int bd_set_isa(const char* name);
// Names of the instruction sets which this build has and this CPU can run, best first, NULL after the last.
BD_API const char* const* bd_supported_isas(void);

// Threads that a call may use, the calling one included. Default: the CPUs this process may run on.
BD_API int bd_set_num_threads(int threads);
BD_API int bd_get_num_threads(void);

// Threads of the host program to compute on, in place of the library's own: two pools of busy threads on the same CPUs would
// slow each other down. A team runs `body(context)` on up to `threads` threads at once, the calling one included, and returns
// when all have returned; `flags` is 0. GOMP_parallel of an OpenMP run-time library is one. NULL: the library's own threads,
// which a child process after fork() has in any case.
typedef void (*bd_team)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
BD_API int bd_set_team(bd_team team);

// ---- Packing: from storage layout to the library's own --------------------------------------------------------------
// A packed weight is one caller-owned buffer, self-describing, aligned to BD_ALIGNMENT. bd_*_packed_size tells its size.

// `weight`: uint8 [ceil(rows / 4), cols]; row r + k * ceil(rows / 4) is bits 2k, 2k + 1 of packed row r; codes {0, 1, 2}
// for {-1, 0, 1}. `weight_scale`: 1, rows, or rows * ceil(cols / group_size) floats; group_size 0 (none), 64 or 128.
BD_API int bd_ternary_packed_size(int64_t rows, int64_t cols, int64_t group_size, size_t scale_count, size_t* bytes);
BD_API int bd_ternary_pack(const uint8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, const float* weight_scale,
                           size_t scale_count, int64_t group_size, void* packed, size_t packed_bytes);

// Bytes of such a weight: BD_ERROR_CODE if one holds code 3, also where there is no row.
BD_API int bd_ternary_check(const uint8_t* weight, size_t weight_bytes);

// `dense`: uint8 [ceil(rows * cols / 5)], five weights in a byte, as files may hold them. With n = ceil(rows * cols / 5), byte i has
// weights i, i + n, .. i + 4n of the rows one after another, each plus one, as the digits of a number v < 243 in base 3, the first
// the most significant: ceil(v * 256 / 243). `weight`: as bd_ternary_pack reads it; code 3 where a byte is no such number.
BD_API int bd_ternary_from_dense(const uint8_t* dense, size_t dense_bytes, int64_t rows, int64_t cols, uint8_t* weight,
                                 size_t weight_bytes);
// The inverse; BD_ERROR_CODE if a weight has code 3.
BD_API int bd_ternary_to_dense(const uint8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, uint8_t* dense,
                               size_t dense_bytes);

// A packed ternary weight (BD_TERNARY) with five weights in a byte: a fifth smaller, equal in every result. Only AVX-512 VBMI
// computes with it as fast as with two bits, other instruction sets slowly. bd_ternary_dense_is_fast: 1 if here
// one token is 3 % faster with weights from memory and neither a few nor many are 3 % slower, and 0 otherwise; measured once a process. bd_ternary_dense_size: 0 bytes if this
// weight gains nothing (64 columns or fewer, or scales of groups).
BD_API int bd_ternary_dense_is_fast(int* fast);
BD_API int bd_ternary_dense_size(const void* packed, size_t packed_bytes, size_t* bytes);
BD_API int bd_ternary_dense_pack(const void* packed, size_t packed_bytes, void* dense, size_t dense_bytes);

// `weight`: int8 [rows, cols] in [-127, 127]. `weight_scale`: rows floats.
BD_API int bd_int8_packed_size(int64_t rows, int64_t cols, size_t* bytes);
BD_API int bd_int8_pack(const int8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, const float* weight_scale,
                        size_t scale_count, void* packed, size_t packed_bytes);

// `weight`: uint8 [rows, ceil(cols / 2)], even column in the low nibble, value + 8. `weight_scale`: rows * ceil(cols / 32)
// IEEE half floats.
BD_API int bd_int4_packed_size(int64_t rows, int64_t cols, size_t* bytes);
BD_API int bd_int4_pack(const uint8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, const uint16_t* weight_scale,
                        size_t scale_count, void* packed, size_t packed_bytes);

// An int8 or int4 weight from a table of floats (bd_table_kind but BD_TABLE_PACKED), of bd_int8_packed_size or
// bd_int4_packed_size bytes, a stretch of rows a call, the first stretch first: rows [first_row,
// first_row + row_count), first_row a multiple of 16 and row_count too unless the stretch is the last.
//   int8: scale = max|w| / 127 of the row, code = round_half_even(w / scale)
//   int4: scale = half(w_largest / -8) of 32 columns, w_largest the value of largest magnitude (the positive one of two),
//         code = round_half_even(clip(w / scale, -8, 7))
// A scale of 0 has codes 0. BD_ERROR_SCALE: a value is not finite; BD_ERROR_ARGUMENT: a scale is too large for a half.
BD_API int bd_table_pack_rows(int format, const void* table, size_t table_bytes, int kind, int64_t rows, int64_t cols,
                              int64_t first_row, int64_t row_count, void* packed, size_t packed_bytes);

// An int8 weight in two parts of about 4 bits, of which an arg max of its outputs reads only the first for most rows. It has about 5 bytes a
// row and 4 a column more.
// bd_split_begin: of `rows` rows, none of them there yet. `sample`: of bd_int8_pack or bd_table_pack_rows, some of the rows or all, by which
// the columns are chosen that the first part holds whole. `norm_weight`: of the norm in front, cols floats, or NULL with count 0;
// it helps to choose.
// bd_split_pack_rows: rows [first_row, first_row + those of `packed`), which is a weight of these rows alone, no scale negative; first_row a
// multiple of 16 and their number too unless they are the last.
BD_API int bd_split_size(int64_t rows, int64_t cols, size_t* bytes);
BD_API int bd_split_begin(int64_t rows, const void* sample, size_t sample_bytes, const float* norm_weight, size_t norm_count,
                          void* split, size_t split_bytes);
BD_API int bd_split_pack_rows(const void* packed, size_t packed_bytes, int64_t first_row, void* split, size_t split_bytes);

// Reads and checks the header of a packed weight.
BD_API int bd_weight_describe(const void* packed, size_t packed_bytes, bd_weight_info* info);

// ---- Computing -------------------------------------------------------------------------------------------------------
// out [tokens, out_features] = linear(norm(x [tokens, in_features])). norm_weight (in_features floats) and bias
// (out_features floats) may be NULL. All matrices are contiguous; the counts are in elements and are checked.
BD_API int bd_linear(const void* packed, size_t packed_bytes, const void* x, size_t x_count, int x_dtype, int64_t tokens,
                     const float* norm_weight, size_t norm_count, float norm_eps, const float* bias, size_t bias_count,
                     float* out, size_t out_count);

// bd_linear of the int8 weight that a split one was made from, bit for bit, x in float32. With `greatest`, outputs that are certainly
// less than the greatest one of their token may be -inf instead.
BD_API int bd_split_linear(const void* split, size_t split_bytes, const float* x, size_t x_count, int64_t tokens, int greatest,
                           float* out, size_t out_count);

// Rows of the dequantised weight (embedding lookup): out [index_count, cols].
BD_API int bd_embedding(const void* packed, size_t packed_bytes, const int64_t* index, size_t index_count, float* out,
                        size_t out_count);

// The first half of bd_linear: x_q int8 [tokens, cols] and scale s [tokens].
BD_API int bd_quantize_activations(const void* x, size_t x_count, int x_dtype, int64_t tokens, int64_t cols,
                                   const float* norm_weight, size_t norm_count, float norm_eps, int8_t* x_q, size_t x_q_count,
                                   float* s, size_t s_count);

// The integers between: acc int32 [tokens, rows, groups] for any x_q, -128 included.
BD_API int bd_matmul_int32(const void* packed, size_t packed_bytes, const int8_t* x_q, size_t x_q_count, int64_t tokens,
                           int32_t* acc, size_t acc_count);

// ---- Training ----------------------------------------------------------------------------------------------------------
// What an online student computes beside its matrix products. Rows are contiguous, BD_FLOAT32 or BD_BFLOAT16; counts are in elements.
// Nothing is refused for its values: a NaN or an infinity goes on as in torch.

// out [tokens, cols] = the integers x_q (see above) as floats, s [tokens]. In a token with a NaN or an infinity some are NaN.
BD_API int bd_train_quantize(const void* x, size_t x_count, int x_dtype, int64_t tokens, int64_t cols, void* out,
                             size_t out_count, int out_dtype, float* s, size_t s_count);

// out [rows, cols] = clip(round_half_even(weight / scale), -1, 1). `scales`: one, or [rows].
BD_API int bd_train_ternarize(const void* weight, size_t weight_count, int weight_dtype, int64_t rows, int64_t cols,
                              const float* scales, size_t scale_count, void* out, size_t out_count, int out_dtype);

// out [rows, cols] = (x * first) * second[row]; `out` may be `x` where the dtypes are equal. `first`: null, one, or [cols].
BD_API int bd_train_scale(const void* x, size_t x_count, int x_dtype, int64_t rows, int64_t cols, const float* first,
                          size_t first_count, const float* second, size_t second_count, void* out, size_t out_count,
                          int out_dtype);

// out [tokens, cols] = x * r * weight, r = inverse_rms [tokens] = 1 / sqrt(mean(x^2) + eps) of the token, the mean in double.
BD_API int bd_train_norm(const void* x, size_t x_count, int dtype, int64_t tokens, int64_t cols, const float* weight,
                         size_t weight_count, float eps, void* out, size_t out_count, float* inverse_rms, size_t inverse_count);

// Its gradients: grad_x [tokens, cols], and that of the weight as the sums of each BD_NORM_TOKENS tokens,
// weight_sums [ceil(tokens / BD_NORM_TOKENS), cols].
#define BD_NORM_TOKENS 64
BD_API int bd_train_norm_backward(const void* grad, size_t grad_count, const void* x, size_t x_count, int dtype, int64_t tokens,
                                  int64_t cols, const float* weight, size_t weight_count, const float* inverse_rms,
                                  size_t inverse_count, void* grad_x, size_t grad_x_count, float* weight_sums,
                                  size_t sums_count);

// ---- Decoder ---------------------------------------------------------------------------------------------------------
// A whole transformer decoder, described by data. For token t at position p of its sequence:
//
//   h = embedding[t] * embedding_scale
//   for each layer:
//     a = input_norm(h)
//     q, k, v = the rows of qkv(a), in this order; q_norm, k_norm; rotary embedding; k, v go into the cache
//     a = o(softmax(cap(q . k * attention_scale)) . v) over the positions (p - window, p] of the sequence
//     h = h + post_attention_norm(a)
//     a = pre_feedforward_norm(h)
//     a = down(act(gate(a)) * up(a))
//         or, in a mixture, the sum over a's experts of weight * the same of the expert; p = softmax(router . a), the experts
//         are those of the largest p (the first of equal ones), their weights p, or p / their sum where it normalises
//     h = h + post_feedforward_norm(a)
//   logits = cap(head(final_norm(h)))      cap(x) = c * tanh(x / c), where a cap c is set
//
// Norms are RMSNorms: x / sqrt(mean(x^2) + eps) * weight (an architecture that stores weight - 1 adds the one before).
// A linear layer norms (SubLN) and quantises its input as bd_linear does; one whose weight is floats norms it and computes in
// float32. One with an adapter adds (a . norm(x)) . b, in float32 and of the same normed input. Everything else is float32; keys and values are kept as kv_dtype.
typedef enum bd_activation { BD_SILU = 0, BD_GELU = 1, BD_GELU_TANH = 2, BD_RELU = 3, BD_RELU_SQUARED = 4 } bd_activation;

typedef enum bd_output {
  BD_OUTPUT_LOGITS = 0,
  BD_OUTPUT_HIDDEN = 1,    // final_norm(h)
  BD_OUTPUT_GREATEST = 2,  // logits; those that are certainly less than the greatest one of their token may be -inf
} bd_output;

typedef struct bd_norm {
  const float* weight;  // null: no norm
  size_t count;
  float eps;
} bd_norm;

// A matrix, packed or contiguous floats: the rows of an embedding or an output head (these may be in two parts, too), or the weight
// of a projection.
typedef struct bd_table {
  int32_t kind;  // bd_table_kind
  const void* data;  // null: none
  size_t bytes;
} bd_table;

// A product of low rank (LoRA).
typedef struct bd_adapter {
  const float* a;  // [rank, columns]; null: no adapter
  size_t a_count;
  const float* b;  // [rank, rows], with the scaling in it
  size_t b_count;
  int64_t rank;
} bd_adapter;

typedef struct bd_projection {
  bd_table weight;     // [rows, columns]
  const float* bias;   // or null
  size_t bias_count;
  bd_norm sub_norm;    // of the input
  bd_adapter adapter;
} bd_projection;

typedef struct bd_rope {
  const float* inv_freq;  // [rotary_dim / 2]; the first rotary_dim elements of a head are rotated, halves paired
  size_t count;
  float attention_scaling;  // multiplies cos and sin
} bd_rope;

typedef struct bd_expert {
  bd_projection gate_up[2];  // their rows, one after another, are gate, up
  bd_projection down;
} bd_expert;

typedef struct bd_mixture {
  bd_table router;             // floats [expert_count, hidden_size]; data null: no mixture
  const bd_expert* experts;
  int32_t expert_count, experts_per_token;
  int32_t gate_up_count;       // of each expert, 1 or 2
  int32_t normalise;
  int64_t intermediate_size;   // of an expert
} bd_mixture;

typedef struct bd_layer {
  bd_norm input_norm, post_attention_norm, pre_feedforward_norm, post_feedforward_norm;
  bd_norm q_norm, k_norm;    // head_dim weights (a norm a head), or as many as all heads have (one over all)
  bd_projection qkv[3];      // their rows, one after another, are q, k, v
  int32_t qkv_count;         // 1 to 3
  int32_t gate_up_count;     // 1 or 2
  bd_projection gate_up[2];  // their rows, one after another, are gate, up
  bd_projection o, down;
  int32_t rope;              // index into ropes; -1: no rotary embedding
  int64_t window;            // positions a token sees, itself included; 0: all
  bd_mixture mixture;        // in place of gate_up and down, which are not looked at then
} bd_layer;

typedef struct bd_decoder_config {
  int64_t vocab_size, hidden_size, intermediate_size, head_dim, max_positions;
  int32_t heads, kv_heads, layer_count, rope_count;
  const bd_layer* layers;
  const bd_rope* ropes;
  bd_table embedding, head;  // head null: the decoder has hidden states alone
  bd_norm final_norm;
  float embedding_scale, attention_scale, attention_softcap, logit_softcap;  // a softcap of 0: none
  int32_t activation;        // bd_activation
  int32_t kv_dtype;          // BD_FLOAT32, BD_FLOAT16 or BD_SCALED_INT8
} bd_decoder_config;

typedef struct bd_decoder bd_decoder;  // immutable: any number of threads may use one
typedef struct bd_cache bd_cache;      // keys and values of some sequences; calls on one take turns

// Checks that all parts fit together (else BD_ERROR_MODEL, or the error of the part). Copies the descriptions, and norm
// weights, biases and frequencies; borrows weights, tables and adapters, which must outlive the decoder. Decoders may share them: one
// for each adapter of the same weights.
BD_API int bd_decoder_create(const bd_decoder_config* config, bd_decoder** decoder);
BD_API void bd_decoder_destroy(bd_decoder* decoder);  // after all its caches; null is allowed

BD_API int bd_cache_create(const bd_decoder* decoder, int64_t sequences, bd_cache** cache);
BD_API void bd_cache_destroy(bd_cache* cache);  // null is allowed
BD_API int bd_cache_sequences(const bd_cache* cache, int64_t* sequences);
BD_API int bd_cache_lengths(const bd_cache* cache, int64_t* lengths, size_t count);
// The first `length` positions of a sequence stay.
BD_API int bd_cache_truncate(bd_cache* cache, int64_t sequence, int64_t length);
// Afterwards there are `count` sequences, and number i holds what number source[i] held. Shares memory where it can.
BD_API int bd_cache_reorder(bd_cache* cache, const int64_t* source, size_t count);
BD_API int bd_cache_bytes(const bd_cache* cache, size_t* bytes);

// Appends tokens to sequences: tokens[i] to sequence sequences[i], which must not decrease from i to i + 1. Writes the
// outputs (bd_output) of the tokens output_index[...], [output_count, vocab_size or hidden_size]. On failure the
// sequences are as before.
BD_API int bd_decoder_forward(const bd_decoder* decoder, bd_cache* cache, const int64_t* tokens, const int64_t* sequences,
                              size_t token_count, const int64_t* output_index, size_t output_count, int output, float* out,
                              size_t out_count);

// ---- Limits of the machine, for benchmarks --------------------------------------------------------------------------
// Bytes a second read from a buffer, and multiply-adds a second of the instruction sequence that the ternary matrix
// product is made of; best of `repeats`, on all threads of the pool.
BD_API int bd_measure_read_bandwidth(const void* data, size_t bytes, int repeats, double* bytes_per_second);
BD_API int bd_measure_multiply_add(int repeats, double* multiply_adds_per_second);

#ifdef __cplusplus
}
#endif
#endif
