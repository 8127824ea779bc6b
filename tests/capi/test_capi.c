/* Everything that pyinfer.h declares, from C: results, every status, structs of other versions, closed handles, NULL, threads, forks.
 *
 *     capi_tests TINY_MODEL.bin
 *
 * The model is a random one of 101 tokens and a context of 512 (write_model.cpp), so what is checked here is the interface; whether
 * the numbers are those of the other interface is checked by tests/py/test_capi.py. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pyinfer.h"

static int n_checks, n_failed;

#define CHECK(condition) check((condition) ? 1 : 0, #condition, __LINE__)
/* The call fails so, with a sentence that contains `part`. */
#define REFUSED(call, expected, part) refused((call), (expected), (part), #call, __LINE__)
#define OK(call) REFUSED((call), PYI_OK, "")

static void check(int ok, const char* text, int line) {
  ++n_checks;
  if (ok) return;
  ++n_failed;
  printf("  %d: %s\n", line, text);
}

static void refused(pyi_status found, pyi_status expected, const char* part, const char* text, int line) {
  const int ok = found == expected && (found == PYI_OK || strstr(pyi_last_error(), part) != NULL);
  check(ok, text, line);
  if (!ok) {
    printf("    expected %s with \"%s\", found %s", pyi_status_name(expected), part, pyi_status_name(found));
    printf(" with \"%s\"\n", found == PYI_OK ? "" : pyi_last_error());
  }
}

enum { N_VOCAB = 101, CONTEXT = 512 };
static const char* path;
static const int32_t prompt[5] = {1, 2, 3, 50, 100};

static pyi_model* open_model(int32_t threads) {
  pyi_model_options options;
  pyi_model* model = NULL;
  OK(pyi_model_options_init(&options, sizeof options));
  options.threads = threads;
  OK(pyi_model_open(path, &options, &model));
  return model;
}

static pyi_session* open_session(pyi_model* model) {
  pyi_session* session = NULL;
  OK(pyi_session_open(model, NULL, &session));
  return session;
}

/* The library */

static void test_library(void) {
  CHECK(pyi_abi_version() == PYI_ABI_VERSION);
  CHECK(strchr(pyi_version(), '.') != NULL);
  CHECK(strcmp(pyi_status_name(PYI_OK), "PYI_OK") == 0 && strcmp(pyi_status_name(PYI_INTERNAL), "PYI_INTERNAL") == 0);
  CHECK(strcmp(pyi_status_name(-1), "unknown") == 0 && strcmp(pyi_status_name(9), "unknown") == 0);
  CHECK(pyi_isa() != NULL && strlen(pyi_isa()) > 0);
  CHECK(pyi_default_threads() >= 1);
}

/* Models */

static void test_model(void) {
  pyi_model* model = open_model(3);
  pyi_model_info info;
  OK(pyi_model_get_info(model, &info, sizeof info));
  CHECK(info.size == sizeof info && info.n_vocab == N_VOCAB && info.context == CONTEXT && info.n_layers == 2);
  CHECK(info.dim == 48 && info.n_heads == 6 && info.n_kv_heads == 2 && info.head_dim == 8 && info.n_ff == 80);
  CHECK(info.threads == 3 && info.activations == PYI_INT8 && info.tied_head == 1 && info.rope_dim == 8);
  CHECK(info.norm_eps > 0 && info.rope_magnitude == 1.0f && info.attention_scale == 0.35f && info.n_tensors > 10);

  pyi_memory half, whole, bytes, integers, usual;
  OK(pyi_model_get_memory(model, 64, PYI_KV_F16, &half, sizeof half));
  OK(pyi_model_get_memory(model, 128, PYI_KV_F16, &whole, sizeof whole));
  OK(pyi_model_get_memory(model, 128, PYI_KV_Q8, &bytes, sizeof bytes));
  OK(pyi_model_get_memory(model, 128, PYI_KV_I16, &integers, sizeof integers));
  OK(pyi_model_get_memory(model, 128, PYI_KV_AUTO, &usual, sizeof usual));
  CHECK(whole.kv_cache == 2 * half.kv_cache && bytes.kv_cache < whole.kv_cache && integers.kv_cache > whole.kv_cache);
  CHECK(usual.kv_cache == whole.kv_cache || usual.kv_cache == integers.kv_cache);
  CHECK(half.weights == info.file_bytes && half.workspace > 0);
  REFUSED(pyi_model_get_memory(model, 0, PYI_KV_F16, &half, sizeof half), PYI_REQUEST, "context: expected 1 to");
  REFUSED(pyi_model_get_memory(model, UINT64_MAX, PYI_KV_F16, &half, sizeof half), PYI_REQUEST, "context");
  REFUSED(pyi_model_get_memory(model, 64, 7, &half, sizeof half), PYI_REQUEST,
          "kv: expected PYI_KV_AUTO, _F16, _I16 or _Q8");
  pyi_model_close(model);
}

static void test_contents(void) {
  pyi_model* model = open_model(1);
  const uint8_t* data = NULL;
  size_t size = 0;
  OK(pyi_model_get_metadata(model, &data, &size));
  CHECK(size == 2 && memcmp(data, "{}", 2) == 0);
  OK(pyi_model_get_tokenizer(model, &data, &size));
  CHECK(size == 3 && memcmp(data, "tok", 3) == 0);
  REFUSED(pyi_model_get_tokenizer(model, NULL, &size), PYI_REQUEST,
          "data: expected a place for the result, found NULL");
  REFUSED(pyi_model_get_metadata(model, &data, NULL), PYI_REQUEST, "size: expected a place");

  pyi_tensor tensor;
  int32_t matches = 0;
  OK(pyi_model_get_tensor(model, 0, &tensor, sizeof tensor));
  CHECK(strcmp(tensor.role, "embedding") == 0 && strcmp(tensor.format, "q4") == 0 && tensor.layer == -1);
  CHECK(tensor.rows == N_VOCAB && tensor.cols == 48 && tensor.bytes > 0);
  OK(pyi_model_verify(model, 0, &matches));
  CHECK(matches == 1);
  REFUSED(pyi_model_get_tensor(model, UINT64_MAX, &tensor, sizeof tensor), PYI_REQUEST, "tensor: expected 0 to");
  REFUSED(pyi_model_verify(model, 1000, &matches), PYI_REQUEST, "tensor: expected 0 to");
  pyi_model_close(model);
}

static void test_options(void) {
  pyi_model* model = NULL;
  pyi_model_options options;
  OK(pyi_model_options_init(&options, sizeof options));
  CHECK(options.size == sizeof options && options.threads == 0 && options.prefetch == 1 && options.kv == PYI_KV_AUTO);
  options.threads = 257;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "threads: expected 1 to 256, found 257");
  options.threads = -1;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "threads");
  options.threads = 1;
  options.activations = 2;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST,
          "activations: expected PYI_INT8 or PYI_FLOAT32, found 2");
  options.activations = PYI_FLOAT32;
  options.prefetch = 2;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "prefetch: expected 0 or 1, found 2");
  options.prefetch = 0;
  options.kv = -1;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "kv: expected");
  options.kv = PYI_KV_Q8;
  options.huge_pages = 3;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "huge_pages: expected PYI_HUGE_PAGES_AUTO, _ON or _OFF");
  options.huge_pages = PYI_HUGE_PAGES_ON;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "prefetch: expected 1 with PYI_HUGE_PAGES_ON");
  options.huge_pages = PYI_HUGE_PAGES_OFF;
  options.reserved = 1;
  REFUSED(pyi_model_open(path, &options, &model), PYI_UNSUPPORTED, "pyi_model_options.reserved: expected 0, found 1");
  options.reserved = 0;
  options.context_limit = CONTEXT + 1;
  REFUSED(pyi_model_open(path, &options, &model), PYI_REQUEST, "context_limit: expected at most 512");
  CHECK(model == NULL);
  options.context_limit = 100;
  OK(pyi_model_open(path, &options, &model));

  pyi_session_options wanted;
  pyi_session* session = NULL;
  uint64_t context = 0;
  OK(pyi_session_options_init(&wanted, sizeof wanted));
  OK(pyi_session_open(model, &wanted, &session));
  OK(pyi_session_get_context(session, &context));
  CHECK(context == 100);
  pyi_session_close(session);
  session = NULL;
  wanted.context = 101;
  REFUSED(pyi_session_open(model, &wanted, &session), PYI_REQUEST,
          "context: expected at most the model's limit of 100");
  wanted.context = 7;
  wanted.kv = 5;
  REFUSED(pyi_session_open(model, &wanted, &session), PYI_REQUEST, "kv");
  wanted.kv = PYI_KV_F16;
  wanted.reserved = 1;
  REFUSED(pyi_session_open(model, &wanted, &session), PYI_UNSUPPORTED, "pyi_session_options.reserved");
  CHECK(session == NULL);
  wanted.reserved = 0;
  OK(pyi_session_open(model, &wanted, &session));
  OK(pyi_session_get_context(session, &context));
  CHECK(context == 7);
  pyi_session_close(session);
  pyi_model_close(model);
}

/* Files that are refused: a status and a sentence, and the process lives. */
static void test_bad_files(void) {
  pyi_model* model = NULL;
  REFUSED(pyi_model_open("/no/such/model.bin", NULL, &model), PYI_SYSTEM, "/no/such/model.bin: cannot be opened");
  CHECK(pyi_last_error_code() == ENOENT);
  REFUSED(pyi_model_open("/", NULL, &model), PYI_MODEL_FILE, "expected a regular file");
  CHECK(pyi_last_error_code() == 0);
  REFUSED(pyi_model_open("", NULL, &model), PYI_SYSTEM, "cannot be opened");
  REFUSED(pyi_model_open(NULL, NULL, &model), PYI_REQUEST, "path: expected a path, found NULL");
  REFUSED(pyi_model_open(path, NULL, NULL), PYI_REQUEST, "model: expected a place for the result, found NULL");
  REFUSED(pyi_model_open("/proc/self/exe", NULL, &model), PYI_MODEL_FILE, "not a model.bin");
  CHECK(model == NULL);
}

/* Sessions */

static void test_session(void) {
  pyi_model* model = open_model(2);
  pyi_session* session = open_session(model);
  uint64_t position = 9;
  OK(pyi_session_get_position(session, &position));
  CHECK(position == 0);
  OK(pyi_session_prefill(session, prompt, 5));
  float last[N_VOCAB];
  const float* logits = pyi_session_logits(session);
  memcpy(last, logits, sizeof last);

  /* Token by token, in chunks, and all rows at once: the same bits. */
  OK(pyi_session_truncate(session, 0));
  for (int i = 0; i < 5; ++i) OK(pyi_session_step(session, prompt[i]));
  CHECK(pyi_session_logits(session) == logits && memcmp(last, logits, sizeof last) == 0);
  pyi_eval_options options;
  OK(pyi_eval_options_init(&options, sizeof options));
  CHECK(options.wanted == PYI_LAST_LOGITS && options.chunk == 512 && options.poll == NULL);
  static float rows[5 * N_VOCAB];
  options.wanted = PYI_ALL_LOGITS;
  options.chunk = 2;
  OK(pyi_session_truncate(session, 0));
  OK(pyi_session_eval(session, prompt, 5, &options, rows, 5 * N_VOCAB));
  CHECK(memcmp(last, rows + 4 * N_VOCAB, sizeof last) == 0);
  OK(pyi_session_get_position(session, &position));
  CHECK(position == 5);

  OK(pyi_session_truncate(session, 4));
  OK(pyi_session_eval(session, prompt + 4, 1, NULL, rows, N_VOCAB));
  CHECK(memcmp(last, rows, sizeof last) == 0);
  options.wanted = PYI_NO_LOGITS;
  OK(pyi_session_eval(session, prompt, 1, &options, NULL, 0));
  OK(pyi_session_prefill(session, NULL, 0));
  OK(pyi_session_get_position(session, &position));
  CHECK(position == 6);
  pyi_session_close(session);
  pyi_model_close(model);
}

static void test_session_refuses(void) {
  pyi_model* model = open_model(1);
  pyi_session* session = open_session(model);
  static int32_t many[CONTEXT + 1];
  static float rows[2 * N_VOCAB];
  pyi_eval_options options;
  OK(pyi_eval_options_init(&options, sizeof options));
  REFUSED(pyi_session_prefill(session, many, CONTEXT + 1), PYI_CONTEXT_FULL,
          "context: expected at most 512 tokens, found 0");
  REFUSED(pyi_session_prefill(session, many, SIZE_MAX), PYI_CONTEXT_FULL, "context: expected at most 512");
  REFUSED(pyi_session_prefill(session, NULL, 1), PYI_REQUEST, "tokens: expected an array, found NULL");
  REFUSED(pyi_session_step(session, -1), PYI_REQUEST, "token: expected 0 to 100, found -1");
  REFUSED(pyi_session_step(session, N_VOCAB), PYI_REQUEST, "token: expected 0 to 100, found 101");
  REFUSED(pyi_session_truncate(session, 1), PYI_REQUEST, "position: expected 0 to 0, found 1");
  REFUSED(pyi_session_truncate(session, UINT64_MAX), PYI_REQUEST, "position");
  REFUSED(pyi_session_get_position(session, NULL), PYI_REQUEST, "position: expected a place");
  REFUSED(pyi_session_get_context(session, NULL), PYI_REQUEST, "context: expected a place");
  REFUSED(pyi_session_eval(session, prompt, 2, &options, NULL, 0), PYI_REQUEST, "logits: expected room for 101 floats");
  REFUSED(pyi_session_eval(session, prompt, 2, &options, rows, 2 * N_VOCAB), PYI_REQUEST,
          "n_logits: expected 101, found 202");
  options.chunk = 0;
  REFUSED(pyi_session_eval(session, prompt, 1, &options, rows, N_VOCAB), PYI_REQUEST,
          "chunk: expected 1 to 512, found 0");
  options.chunk = 1;
  options.wanted = 3;
  REFUSED(pyi_session_eval(session, prompt, 1, &options, rows, N_VOCAB), PYI_REQUEST, "wanted: expected PYI_NO_LOGITS");
  OK(pyi_session_prefill(session, many, CONTEXT));
  REFUSED(pyi_session_step(session, 1), PYI_CONTEXT_FULL, "found 512 held and 1 more");
  pyi_session_close(session);
  pyi_model_close(model);
}

/* Cancelling */

static int32_t count_down(void* context) {
  int* left = context;
  return --*left < 0;
}

static void test_cancel(void) {
  pyi_model* model = open_model(1);
  pyi_session* session = open_session(model);
  uint64_t position = 9;
  OK(pyi_session_cancel(session));
  REFUSED(pyi_session_prefill(session, prompt, 5), PYI_CANCELLED, "cancelled");
  OK(pyi_session_get_position(session, &position));
  CHECK(position == 0);
  OK(pyi_session_prefill(session, prompt, 5));

  int left = 3; /* two layers a chunk: the second chunk is given up */
  pyi_eval_options options;
  OK(pyi_eval_options_init(&options, sizeof options));
  options.chunk = 2;
  options.wanted = PYI_NO_LOGITS;
  options.poll = count_down;
  options.poll_context = &left;
  OK(pyi_session_truncate(session, 0));
  REFUSED(pyi_session_eval(session, prompt, 5, &options, NULL, 0), PYI_CANCELLED, "cancelled");
  OK(pyi_session_get_position(session, &position));
  CHECK(position == 2 && left == -1);
  pyi_session_close(session);
  pyi_model_close(model);
}

/* A poll that wants a step of its own would wait for itself. */
static int32_t steps_another(void* session) {
  REFUSED(pyi_session_step(session, 1), PYI_REQUEST, "a poll came from");
  pyi_session_close(session);
  return 1;
}

static void test_poll_may_not_step(void) {
  pyi_model* model = open_model(1);
  pyi_session *session = open_session(model), *another = open_session(model);
  pyi_eval_options options;
  OK(pyi_eval_options_init(&options, sizeof options));
  options.wanted = PYI_NO_LOGITS;
  options.poll = steps_another;
  options.poll_context = another;
  REFUSED(pyi_session_eval(session, prompt, 5, &options, NULL, 0), PYI_CANCELLED, "cancelled");
  OK(pyi_session_prefill(session, prompt, 5));
  pyi_session_close(session);
  pyi_model_close(model);
}

/* Several sessions in a pass */

static void test_forward(void) {
  pyi_model *model = open_model(2), *other = open_model(1);
  pyi_session *a = open_session(model), *b = open_session(model), *strange = open_session(other);
  static float alone[N_VOCAB], together[N_VOCAB];
  OK(pyi_session_eval(a, prompt, 5, NULL, alone, N_VOCAB));
  OK(pyi_session_truncate(a, 0));
  pyi_batch_item items[2] = {{a, prompt, 5, together, N_VOCAB, PYI_LAST_LOGITS, 0},
                             {b, prompt, 2, NULL, 0, PYI_NO_LOGITS, 0}};
  const size_t each = sizeof items[0];
  OK(pyi_model_forward(model, items, 2, each, NULL));
  CHECK(memcmp(alone, together, sizeof alone) == 0);
  uint64_t position = 0;
  OK(pyi_session_get_position(b, &position));
  CHECK(position == 2);
  OK(pyi_model_forward(model, NULL, 0, each, NULL));

  int left = 0;
  pyi_eval_options options;
  OK(pyi_eval_options_init(&options, sizeof options));
  options.poll = count_down;
  options.poll_context = &left;
  REFUSED(pyi_model_forward(model, items, 2, each, &options), PYI_CANCELLED, "cancelled");
  items[1].session = a;
  REFUSED(pyi_model_forward(model, items, 2, each, NULL), PYI_REQUEST, "each session once a batch");
  items[1].session = strange;
  REFUSED(pyi_model_forward(model, items, 2, each, NULL), PYI_REQUEST, "one of this engine");
  items[1].session = NULL;
  REFUSED(pyi_model_forward(model, items, 2, each, NULL), PYI_REQUEST, "session: expected an open one, found NULL");
  items[1].session = b;
  items[1].reserved = 1;
  REFUSED(pyi_model_forward(model, items, 2, each, NULL), PYI_UNSUPPORTED, "pyi_batch_item.reserved");
  items[1].reserved = 0;
  REFUSED(pyi_model_forward(model, items, 2, 3, NULL), PYI_REQUEST, "pyi_batch_item size");
  REFUSED(pyi_model_forward(model, items, SIZE_MAX, each, NULL), PYI_REQUEST, "n_items: expected at most 512");
  REFUSED(pyi_model_forward(model, NULL, 1, each, NULL), PYI_REQUEST, "items: expected an array, found NULL");
  pyi_session* sessions[] = {a, b, strange};
  for (int i = 0; i < 3; ++i) pyi_session_close(sessions[i]);
  pyi_model_close(model);
  pyi_model_close(other);
}

/* Adapters */

static void test_adapters(void) {
  pyi_model *model = open_model(2), *other = open_model(1);
  pyi_session* session = open_session(model);
  static float bare[N_VOCAB], changed[N_VOCAB], ones[5 * 48];
  for (int i = 0; i < 5 * 48; ++i) ones[i] = 0.05f;
  const pyi_values none = {NULL, 0, 0, PYI_F32, 0}, a = {ones, 5, 48, PYI_F32, 0}, b = {ones, 48, 5, PYI_F32, 0};
  pyi_adapter_module module = {"q", 0, a, b, none, none, none};
  const pyi_replaced_tensor norm = {"final_norm", -1, {ones, 1, 48, PYI_F32, 0}, NULL};
  pyi_adapters_options options;
  OK(pyi_adapters_options_init(&options, sizeof options));
  CHECK(options.module_size == sizeof module && options.n_modules == 0);
  options.modules = &module;
  options.n_modules = 1;
  pyi_adapters *set = NULL, *more = NULL;
  OK(pyi_adapters_open(model, &options, &set));
  uint64_t bytes = 0;
  OK(pyi_adapters_get_bytes(set, &bytes));
  CHECK(bytes >= 2 * 5 * 48 * sizeof(float));

  OK(pyi_session_eval(session, prompt, 5, NULL, bare, N_VOCAB));
  OK(pyi_session_truncate(session, 0));
  OK(pyi_session_set_adapters(session, set));
  pyi_adapters_close(set); /* the session keeps it */
  OK(pyi_session_eval(session, prompt, 5, NULL, changed, N_VOCAB));
  CHECK(memcmp(bare, changed, sizeof bare) != 0);
  OK(pyi_session_set_adapters(session, NULL));
  OK(pyi_session_truncate(session, 0));
  OK(pyi_session_eval(session, prompt, 5, NULL, changed, N_VOCAB));
  CHECK(memcmp(bare, changed, sizeof bare) == 0);
  REFUSED(pyi_session_set_adapters(session, set), PYI_REQUEST, "adapters: expected an open one, found it closed");

  options.replaced = &norm;
  options.n_replaced = 1;
  OK(pyi_adapters_open(model, &options, &more));
  OK(pyi_session_set_adapters(session, more));
  OK(pyi_session_truncate(session, 0));
  OK(pyi_session_eval(session, prompt, 5, NULL, changed, N_VOCAB));
  CHECK(memcmp(bare, changed, sizeof bare) != 0);
  pyi_adapters_close(more);

  OK(pyi_adapters_open(other, &options, &more));
  REFUSED(pyi_session_set_adapters(session, more), PYI_REQUEST, "a set of the session's engine");
  pyi_adapters_close(more);
  more = NULL;
  module.a.cols = 47;
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST,
          "q of layer 0, a: expected shape (5, 48), found (5, 47)");
  module.a.cols = SIZE_MAX;
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "at most 4294967295 rows and columns");
  module.a = a;
  module.scale = (pyi_values){ones, 1, 5, PYI_F16, 0};
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "q of layer 0, scale: expected PYI_F32, found 1");
  module.scale = none;
  module.a.type = 9;
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "expected PYI_F32, PYI_F16 or PYI_BF16, found 9");
  module.a = a;
  module.role = "nothing";
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "expected a tensor of the model, found nothing");
  module.role = NULL;
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "module.role: expected a name, found NULL");
  options.modules = NULL;
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "modules: expected an array, found NULL");
  options.n_modules = SIZE_MAX;
  options.modules = &module;
  REFUSED(pyi_adapters_open(model, &options, &more), PYI_REQUEST, "modules: expected at most");
  REFUSED(pyi_adapters_open(model, NULL, &more), PYI_REQUEST, "options");
  REFUSED(pyi_adapters_get_bytes(more, &bytes), PYI_REQUEST, "adapters: expected an open one, found NULL");
  CHECK(more == NULL);
  pyi_session_close(session);
  pyi_model_close(model);
  pyi_model_close(other);
}

/* Sampling */

static void test_sampling(void) {
  float logits[4] = {0.0f, 3.0f, 2.0f, 1.0f};
  pyi_sampling sampling;
  pyi_sampler* sampler = NULL;
  int32_t token = -1;
  OK(pyi_sampling_init(&sampling, sizeof sampling));
  CHECK(sampling.temperature == 0.8f && sampling.top_k == 40 && sampling.top_p == 0.95f && sampling.min_p == 0.05f);
  CHECK(sampling.typical_p == 1 && sampling.repetition_penalty == 1 && sampling.penalty_window == 64);
  sampling.temperature = 0;
  OK(pyi_sampler_open(4, &sampling, &sampler));
  OK(pyi_sampler_pick(sampler, logits, 4, &token));
  CHECK(token == 1);
  OK(pyi_sampler_accept(sampler, 1));
  REFUSED(pyi_sampler_pick(sampler, logits, 3, &token), PYI_REQUEST, "n_logits: expected 4, found 3");
  REFUSED(pyi_sampler_pick(sampler, NULL, 4, &token), PYI_REQUEST, "logits: expected an array, found NULL");
  REFUSED(pyi_sampler_pick(sampler, logits, 4, NULL), PYI_REQUEST, "token: expected a place");
  REFUSED(pyi_sampler_accept(sampler, 4), PYI_REQUEST, "accepted token: expected 0 to 3, found 4");
  logits[2] = NAN;
  REFUSED(pyi_sampler_pick(sampler, logits, 4, &token), PYI_REQUEST, "logit of token 2");
  pyi_sampler_close(sampler);
  REFUSED(pyi_sampler_accept(sampler, 0), PYI_REQUEST, "sampler: expected an open one, found it closed");

  logits[2] = 2.0f;
  const pyi_logit_bias forbid[2] = {{1, -INFINITY}, {3, 5.0f}};
  sampling.logit_bias = forbid;
  sampling.n_logit_bias = 2;
  OK(pyi_sampler_open(4, &sampling, &sampler));
  OK(pyi_sampler_pick(sampler, logits, 4, &token));
  CHECK(token == 3);
  pyi_sampler_close(sampler);
  sampler = NULL;
  sampling.n_logit_bias = 5;
  REFUSED(pyi_sampler_open(4, &sampling, &sampler), PYI_REQUEST, "n_logit_bias: expected at most");
  sampling.logit_bias = NULL;
  REFUSED(pyi_sampler_open(4, &sampling, &sampler), PYI_REQUEST, "logit_bias: expected an array, found NULL");
  sampling.n_logit_bias = 0;
  sampling.top_p = 1.5f;
  REFUSED(pyi_sampler_open(4, &sampling, &sampler), PYI_REQUEST, "top_p: expected 0 to 1, found 1.5");
  REFUSED(pyi_sampler_open(0, NULL, &sampler), PYI_REQUEST, "n_vocab");
  REFUSED(pyi_sampler_open(UINT32_MAX, NULL, &sampler), PYI_REQUEST, "n_vocab");
  REFUSED(pyi_sampler_open(4, NULL, NULL), PYI_REQUEST, "sampler: expected a place");
  CHECK(sampler == NULL);
}

/* Structs of other versions */

static void test_structs_of_other_versions(void) {
  struct {
    pyi_model_options known;
    uint64_t later[2];
  } newer;
  pyi_model* model = NULL;
  memset(&newer, 0xff, sizeof newer);
  OK(pyi_model_options_init(&newer.known, sizeof newer));
  CHECK(newer.known.size == sizeof newer && newer.later[0] == 0 && newer.later[1] == 0);
  OK(pyi_model_open(path, &newer.known, &model));
  pyi_model_close(model);
  model = NULL;
  newer.later[1] = 1;
  REFUSED(pyi_model_open(path, &newer.known, &model), PYI_UNSUPPORTED, "expected 0 in fields behind the");

  /* One that ends before context_limit: what comes after is not read, and not written. */
  pyi_model_options older;
  memset(&older, 0xff, sizeof older);
  const size_t shorter = offsetof(pyi_model_options, context_limit);
  OK(pyi_model_options_init(&older, shorter));
  CHECK(older.size == shorter && older.threads == 0 && older.context_limit == UINT64_MAX && older.prefetch == -1);
  older.threads = 2;
  OK(pyi_model_open(path, &older, &model));
  struct {
    pyi_model_info known;
    uint64_t later;
  } info;
  memset(&info, 0xff, sizeof info);
  OK(pyi_model_get_info(model, &info.known, sizeof info));
  CHECK(info.known.size == sizeof info && info.known.threads == 2 && info.later == 0);
  memset(&info, 0xff, sizeof info);
  OK(pyi_model_get_info(model, &info.known, offsetof(pyi_model_info, context)));
  CHECK(info.known.n_vocab == N_VOCAB && info.known.context == UINT64_MAX);
  pyi_model_close(model);

  const size_t bad[] = {0, 1, sizeof older - 1, 100000, SIZE_MAX};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
    REFUSED(pyi_model_options_init(&older, bad[i]), PYI_REQUEST, "pyi_model_options size: expected that of a struct");
    older.size = bad[i];
    REFUSED(pyi_model_open(path, &older, &model), PYI_REQUEST, "pyi_model_options size: expected that of a struct");
  }
  REFUSED(pyi_model_options_init(NULL, sizeof older), PYI_REQUEST, "found NULL");
  REFUSED(pyi_session_options_init(NULL, sizeof(pyi_session_options)), PYI_REQUEST, "found NULL");
  REFUSED(pyi_eval_options_init(NULL, sizeof(pyi_eval_options)), PYI_REQUEST, "found NULL");
  REFUSED(pyi_adapters_options_init(NULL, sizeof(pyi_adapters_options)), PYI_REQUEST, "found NULL");
  REFUSED(pyi_sampling_init(NULL, sizeof(pyi_sampling)), PYI_REQUEST, "found NULL");
}

/* Handles that are not, or no longer, what they should be */

static void test_handles(void) {
  pyi_model* model = open_model(2);
  pyi_session* session = open_session(model);
  pyi_model_info info;
  pyi_model_close(model); /* the session keeps it */
  OK(pyi_session_prefill(session, prompt, 5));
  REFUSED(pyi_model_get_info(model, &info, sizeof info), PYI_REQUEST, "model: expected an open one, found it closed");
  REFUSED(pyi_session_open(model, NULL, &session), PYI_REQUEST, "model: expected an open one, found it closed");
  pyi_session* copy = session;
  pyi_session_close(session);
  REFUSED(pyi_session_step(copy, 1), PYI_REQUEST, "session: expected an open one, found it closed");
  CHECK(pyi_session_logits(copy) == NULL);
  pyi_session_close(copy); /* again: nothing */

  pyi_model* fresh = open_model(1); /* no handle is given out twice */
  CHECK(fresh != model);
  REFUSED(pyi_session_step((pyi_session*)(void*)fresh, 1), PYI_REQUEST, "session: expected a handle of its kind");
  pyi_session_close((pyi_session*)(void*)fresh);
  OK(pyi_model_get_info(fresh, &info, sizeof info));
  pyi_model_close(fresh);

  int object = 0;
  void* const odd[] = {NULL, &object, (void*)(uintptr_t)1, (void*)(uintptr_t)-1, (void*)(uintptr_t)-14};
  for (size_t i = 0; i < sizeof odd / sizeof odd[0]; ++i) {
    int32_t token = 0;
    uint64_t number = 0;
    REFUSED(pyi_model_get_info(odd[i], &info, sizeof info), PYI_REQUEST, "model: expected");
    REFUSED(pyi_session_step(odd[i], 1), PYI_REQUEST, "session: expected");
    REFUSED(pyi_session_prefill(odd[i], prompt, 5), PYI_REQUEST, "session: expected");
    REFUSED(pyi_session_truncate(odd[i], 0), PYI_REQUEST, "session: expected");
    REFUSED(pyi_session_cancel(odd[i]), PYI_REQUEST, "session: expected");
    REFUSED(pyi_session_set_adapters(odd[i], NULL), PYI_REQUEST, "session: expected");
    REFUSED(pyi_sampler_pick(odd[i], NULL, 0, &token), PYI_REQUEST, "sampler: expected");
    REFUSED(pyi_adapters_get_bytes(odd[i], &number), PYI_REQUEST, "adapters: expected");
    CHECK(pyi_session_logits(odd[i]) == NULL);
    pyi_model_close(odd[i]);
    pyi_session_close(odd[i]);
    pyi_sampler_close(odd[i]);
    pyi_adapters_close(odd[i]);
  }
}

/* Threads */

enum { N_THREADS = 8, N_STEPS = 40 };
static pyi_model* shared_model;
static pyi_session* contended;
static int32_t expected_tokens[N_STEPS];

/* Greedy tokens after the prompt. */
static void decode(pyi_model* model, int32_t* tokens) {
  pyi_session* session = NULL;
  pyi_sampler* sampler = NULL;
  pyi_sampling sampling;
  pyi_sampling_init(&sampling, sizeof sampling);
  sampling.temperature = 0;
  sampling.repetition_penalty = 1.1f;
  pyi_status status = pyi_session_open(model, NULL, &session);
  if (status == PYI_OK) status = pyi_sampler_open(N_VOCAB, &sampling, &sampler);
  if (status == PYI_OK) status = pyi_session_prefill(session, prompt, 5);
  for (int i = 0; i < N_STEPS && status == PYI_OK; ++i) {
    status = pyi_sampler_pick(sampler, pyi_session_logits(session), N_VOCAB, &tokens[i]);
    if (status == PYI_OK) status = pyi_sampler_accept(sampler, tokens[i]);
    if (status == PYI_OK) status = pyi_session_step(session, tokens[i]);
  }
  pyi_sampler_close(sampler);
  pyi_session_close(session);
}

static void* decodes_the_same(void* wrong) {
  int32_t tokens[N_STEPS] = {0};
  decode(shared_model, tokens);
  if (memcmp(tokens, expected_tokens, sizeof tokens) != 0) *(int*)wrong = 1;
  return NULL;
}

/* Each call succeeds, or is refused since another thread's is under way, or the session is closed; the error is the thread's own. */
static void* contends(void* wrong) {
  const char* const reasons[] = {"one step at a time", "found it closed", "context: expected"};
  for (int i = 0; i < 200; ++i) {
    if (pyi_session_step(contended, 1) == PYI_OK) continue;
    int known = 0;
    for (int j = 0; j < 3; ++j) known |= strstr(pyi_last_error(), reasons[j]) != NULL;
    if (!known) *(int*)wrong = 1;
  }
  return NULL;
}

static void test_threads(void) {
  shared_model = open_model(2);
  contended = open_session(shared_model);
  decode(shared_model, expected_tokens);
  pthread_t threads[2 * N_THREADS];
  int wrong[2 * N_THREADS] = {0};
  for (int i = 0; i < 2 * N_THREADS; ++i)
    CHECK(pthread_create(&threads[i], NULL, i < N_THREADS ? decodes_the_same : contends, &wrong[i]) == 0);
  const struct timespec pause = {0, 20000000};
  nanosleep(&pause, NULL);
  pyi_session_close(contended); /* while others use it */
  for (int i = 0; i < 2 * N_THREADS; ++i) {
    pthread_join(threads[i], NULL);
    CHECK(wrong[i] == 0);
  }
  pyi_model_close(shared_model);
}

static void* cancels(void* session) {
  const struct timespec pause = {0, 1000000};
  nanosleep(&pause, NULL);
  pyi_session_cancel(session);
  return NULL;
}

/* A cancel from another thread ends the step that runs or the next one, and one only. */
static void test_cancel_from_another_thread(void) {
  static int32_t many[CONTEXT];
  pyi_model* model = open_model(1);
  pyi_session* session = open_session(model);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, cancels, session) == 0);
  pyi_status status = PYI_OK;
  while (status == PYI_OK) {
    pyi_session_truncate(session, 0);
    status = pyi_session_prefill(session, many, CONTEXT);
  }
  CHECK(status == PYI_CANCELLED);
  pthread_join(thread, NULL);
  pyi_session_truncate(session, 0);
  OK(pyi_session_prefill(session, many, CONTEXT));
  pyi_session_close(session);
  pyi_model_close(model);
}

static void* closes_cancelled(void* model) {
  pthread_cancel(pthread_self());
  pyi_model_close(model);
  pthread_testcancel();
  return NULL;
}

/* A thread that the system cancels meanwhile closes a model to the end, and ends itself afterwards. */
static void test_close_by_a_cancelled_thread(void) {
  for (int32_t threads = 1; threads <= 2; ++threads) {
    pthread_t thread;
    void* result = NULL;
    CHECK(pthread_create(&thread, NULL, closes_cancelled, open_model(threads)) == 0);
    pthread_join(thread, &result);
    CHECK(result == PTHREAD_CANCELED);
  }
}

static int failed_late;

static void fails_late(void* value) {
  (void)value;
  failed_late = pyi_model_open("/a file that is not there, with a name of some length", NULL, NULL) != PYI_OK &&
                strstr(pyi_last_error(), "expected") != NULL;
}

static void* fails(void* key) {
  pyi_model* model = NULL;
  pyi_model_open("/another file that is not there, with a name of some length", NULL, &model);
  pthread_setspecific(*(pthread_key_t*)key, key);
  return NULL;
}

/* A call may fail, and say why, when the thread is about to end. */
static void test_errors_of_an_ending_thread(void) {
  pthread_key_t key;
  pthread_t thread;
  CHECK(pthread_key_create(&key, fails_late) == 0);
  CHECK(pthread_create(&thread, NULL, fails, &key) == 0);
  pthread_join(thread, NULL);
  CHECK(failed_late);
  pthread_key_delete(key);
}

/* Forks */

static void* steps_until_closed(void* session) {
  while (pyi_session_step(session, 1) == PYI_OK || strstr(pyi_last_error(), "closed") == NULL)
    pyi_session_truncate(session, 0);
  return NULL;
}

static int in_the_child(pyi_model* model, pyi_session* session) {
  pyi_session* another = NULL;
  if (pyi_session_open(model, NULL, &another) != PYI_OK) return 2;
  if (pyi_session_step(another, 1) != PYI_REQUEST || strstr(pyi_last_error(), "found a fork") == NULL) return 3;
  pyi_adapters* set = NULL;
  pyi_adapters_options none;
  if (pyi_adapters_options_init(&none, sizeof none) != PYI_OK) return 6;
  if (pyi_adapters_open(model, &none, &set) != PYI_REQUEST || strstr(pyi_last_error(), "found a fork") == NULL)
    return 7;
  if (pyi_session_truncate(session, 0) != PYI_REQUEST || strstr(pyi_last_error(), "found a fork") == NULL) return 8;
  if (pyi_session_set_adapters(session, NULL) != PYI_REQUEST || strstr(pyi_last_error(), "found a fork") == NULL)
    return 9;
  pyi_session_close(another);
  pyi_session_close(session);
  pyi_model_close(model);
  pyi_model* own = NULL;
  if (pyi_model_open(path, NULL, &own) != PYI_OK) return 4;
  int32_t tokens[N_STEPS] = {0};
  decode(own, tokens);
  pyi_model_close(own);
  return memcmp(tokens, expected_tokens, sizeof tokens) == 0 ? 0 : 5;
}

static void test_fork(void) {
  pyi_model* model = open_model(2);
  pyi_session* session = open_session(model);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, steps_until_closed, session) == 0);
  for (int i = 0; i < 10; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      _exit(in_the_child(model, session));
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
  }
  pyi_session_close(session);
  pthread_join(thread, NULL);
  pyi_model_close(model);
}

/* Memory that the system refuses: a status, and everything works as before. */
static int without_memory(void) {
  pyi_model *model = open_model(1), *another = NULL;
  pyi_session *session = open_session(model), *more = NULL;
  struct rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = 0;
  setrlimit(RLIMIT_AS, &limit);
  int code = 0;
  if (pyi_session_open(model, NULL, &more) != PYI_MEMORY || strstr(pyi_last_error(), "bytes of memory") == NULL)
    code = 2;
  const pyi_status status =
      pyi_model_open(path, NULL, &another); /* the file cannot be mapped, or what comes before fails */
  if (status != PYI_MEMORY && status != PYI_SYSTEM) code = 3;
  if (pyi_session_prefill(session, prompt, 5) != PYI_OK) code = 4;
  return n_failed != 0 ? 5 : code;
}

static void test_memory(void) {
#if !defined(__SANITIZE_ADDRESS__) /* which needs memory of its own */
  const pid_t child = fork();
  if (child == 0) _exit(without_memory());
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#else
  CHECK(without_memory != NULL);
#endif
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  path = argv[1];
  static const struct {
    const char* name;
    void (*run)(void);
    int forks; /* QEMU's user mode cannot start threads in a fork, and has memory of its own there */
  } tests[] = {
      {"library", test_library, 0},
      {"model", test_model, 0},
      {"contents", test_contents, 0},
      {"options", test_options, 0},
      {"bad_files", test_bad_files, 0},
      {"session", test_session, 0},
      {"session_refuses", test_session_refuses, 0},
      {"cancel", test_cancel, 0},
      {"poll_may_not_step", test_poll_may_not_step, 0},
      {"forward", test_forward, 0},
      {"adapters", test_adapters, 0},
      {"sampling", test_sampling, 0},
      {"structs_of_other_versions", test_structs_of_other_versions, 0},
      {"handles", test_handles, 0},
      {"threads", test_threads, 0},
      {"cancel_from_another_thread", test_cancel_from_another_thread, 0},
      {"close_by_a_cancelled_thread", test_close_by_a_cancelled_thread, 0},
      {"errors_of_an_ending_thread", test_errors_of_an_ending_thread, 0},
      {"fork", test_fork, 1},
      {"memory", test_memory, 1},
  };
  int failed = 0;
  for (size_t i = 0; i < sizeof tests / sizeof tests[0]; ++i) {
    n_checks = n_failed = 0;
    if (tests[i].forks && getenv("PYINFER_TEST_EMULATOR") != NULL) {
      printf("skip capi.%s: emulated\n", tests[i].name);
      continue;
    }
    tests[i].run();
    printf("%s capi.%s (%d checks, %d failed)\n", n_failed ? "FAIL" : "ok  ", tests[i].name, n_checks, n_failed);
    fflush(stdout);
    failed += n_failed != 0 || n_checks == 0;
  }
  return failed != 0;
}
