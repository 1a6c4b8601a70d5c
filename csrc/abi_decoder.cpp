// The part of the C ABI that has objects behind it: decoders and their caches.
#include <mutex>
#include <new>
#include <unordered_set>

#include "bitdistill.h"
#include "core/status.h"
#include "decoder/cache.h"
#include "decoder/forward.h"
#include "decoder/model.h"

using namespace bitdistill;

struct bd_decoder {
  Model model;
};

namespace {

constexpr int64_t kMostSequences = INT64_C(1) << 16;

int check_forward(const Model& model, const bd_cache& cache, const int64_t* tokens, const int64_t* sequences,
                  size_t token_count, const int64_t* output_index, size_t output_count, size_t out_count, int output) {
  if (output < BD_OUTPUT_LOGITS || output > BD_OUTPUT_GREATEST) return BD_ERROR_ARGUMENT;
  if (output != BD_OUTPUT_HIDDEN && !model.head.exists() && output_count > 0) return BD_ERROR_MODEL;
  if (token_count < 1 || token_count > static_cast<size_t>(BD_MAX_TOKENS) || output_count > token_count) {
    return BD_ERROR_SHAPE;
  }
  const int64_t width = output == BD_OUTPUT_HIDDEN ? model.hidden_size : model.vocab_size;
  if (out_count != output_count * static_cast<size_t>(width)) return BD_ERROR_BUFFER_SIZE;
  const int64_t sequence_count = static_cast<int64_t>(cache.sequences.size());
  for (size_t i = 0; i < token_count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= model.vocab_size) return BD_ERROR_INDEX;
    if (sequences[i] < (i == 0 ? 0 : sequences[i - 1]) || sequences[i] >= sequence_count) return BD_ERROR_INDEX;
  }
  for (size_t i = 0; i < output_count; ++i) {
    if (output_index[i] < 0 || static_cast<size_t>(output_index[i]) >= token_count) return BD_ERROR_INDEX;
  }
  return BD_OK;
}

}  // namespace

extern "C" {

int bd_decoder_create(const bd_decoder_config* config, bd_decoder** decoder) {
  if (config == nullptr || decoder == nullptr) return BD_ERROR_NULL_POINTER;
  *decoder = nullptr;
  return without_exceptions([&] {
    auto built = std::make_unique<bd_decoder>();
    BD_RETURN_IF_ERROR(build_model(*config, &built->model));
    *decoder = built.release();
    return static_cast<int>(BD_OK);
  });
}

void bd_decoder_destroy(bd_decoder* decoder) { delete decoder; }

int bd_cache_create(const bd_decoder* decoder, int64_t sequences, bd_cache** cache) {
  if (decoder == nullptr || cache == nullptr) return BD_ERROR_NULL_POINTER;
  *cache = nullptr;
  if (sequences < 1 || sequences > kMostSequences) return BD_ERROR_SHAPE;
  return without_exceptions([&] {
    *cache = new bd_cache(decoder->model, sequences);
    return static_cast<int>(BD_OK);
  });
}

void bd_cache_destroy(bd_cache* cache) { delete cache; }

int bd_cache_sequences(const bd_cache* cache, int64_t* sequences) {
  if (cache == nullptr || sequences == nullptr) return BD_ERROR_NULL_POINTER;
  return without_exceptions([&] {
    std::lock_guard<std::mutex> lock(cache->mutex);
    *sequences = static_cast<int64_t>(cache->sequences.size());
    return static_cast<int>(BD_OK);
  });
}

int bd_cache_lengths(const bd_cache* cache, int64_t* lengths, size_t count) {
  if (cache == nullptr || lengths == nullptr) return BD_ERROR_NULL_POINTER;
  return without_exceptions([&] {
    std::lock_guard<std::mutex> lock(cache->mutex);
    if (count != cache->sequences.size()) return static_cast<int>(BD_ERROR_BUFFER_SIZE);
    for (size_t i = 0; i < count; ++i) lengths[i] = cache->sequences[i].length();
    return static_cast<int>(BD_OK);
  });
}

int bd_cache_truncate(bd_cache* cache, int64_t sequence, int64_t length) {
  if (cache == nullptr) return BD_ERROR_NULL_POINTER;
  return without_exceptions([&] {
    std::lock_guard<std::mutex> lock(cache->mutex);
    if (sequence < 0 || sequence >= static_cast<int64_t>(cache->sequences.size())) return static_cast<int>(BD_ERROR_INDEX);
    Sequence& s = cache->sequences[static_cast<size_t>(sequence)];
    if (length < 0 || length > s.length()) return static_cast<int>(BD_ERROR_SHAPE);
    s.truncate(length);
    return static_cast<int>(BD_OK);
  });
}

int bd_cache_reorder(bd_cache* cache, const int64_t* source, size_t count) {
  if (cache == nullptr || source == nullptr) return BD_ERROR_NULL_POINTER;
  if (count < 1 || count > static_cast<size_t>(kMostSequences)) return BD_ERROR_SHAPE;
  return without_exceptions([&] {
    std::lock_guard<std::mutex> lock(cache->mutex);
    std::vector<Sequence> fresh(count);
    for (size_t i = 0; i < count; ++i) {
      if (source[i] < 0 || source[i] >= static_cast<int64_t>(cache->sequences.size())) return static_cast<int>(BD_ERROR_INDEX);
      fresh[i] = cache->sequences[static_cast<size_t>(source[i])];
    }
    cache->sequences.swap(fresh);
    return static_cast<int>(BD_OK);
  });
}

int bd_cache_bytes(const bd_cache* cache, size_t* bytes) {
  if (cache == nullptr || bytes == nullptr) return BD_ERROR_NULL_POINTER;
  return without_exceptions([&] {
    std::lock_guard<std::mutex> lock(cache->mutex);
    std::unordered_set<const Page*> pages;
    for (const Sequence& s : cache->sequences) {
      for (size_t i = 0; i < s.page_count(); ++i) pages.insert(s.page(i));
    }
    *bytes = pages.size() * cache->layout.total;
    return static_cast<int>(BD_OK);
  });
}

int bd_decoder_forward(const bd_decoder* decoder, bd_cache* cache, const int64_t* tokens, const int64_t* sequences,
                       size_t token_count, const int64_t* output_index, size_t output_count, int output, float* out,
                       size_t out_count) {
  if (decoder == nullptr || cache == nullptr || tokens == nullptr || sequences == nullptr) return BD_ERROR_NULL_POINTER;
  if (output_count > 0 && (output_index == nullptr || out == nullptr)) return BD_ERROR_NULL_POINTER;
  return without_exceptions([&]() -> int {
    std::lock_guard<std::mutex> lock(cache->mutex);
    if (cache->model != &decoder->model) return BD_ERROR_MODEL;
    BD_RETURN_IF_ERROR(
        check_forward(decoder->model, *cache, tokens, sequences, token_count, output_index, output_count, out_count, output));
    const ForwardTask task = {tokens,
                              sequences,
                              static_cast<int64_t>(token_count),
                              output_index,
                              static_cast<int64_t>(output_count),
                              static_cast<bd_output>(output),
                              out};
    return forward(decoder->model, *cache, task);
  });
}

}  // extern "C"
