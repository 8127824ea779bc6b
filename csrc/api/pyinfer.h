/* pyinfer for C: opens a model.bin and runs it. Strict C11, and C++.
 *
 * Rules that hold for every function here:
 *
 * Status. A function that can fail returns PYI_OK or another pyi_status, and leaves its results alone when it fails, unless it
 * says otherwise. pyi_last_error() then has one sentence: what was expected, what was found, where. Nothing is printed, and no C++
 * exception leaves the library. No signal is raised, with one exception: a file that is cut while a call reads it, or that the
 * system fails to read, may end in SIGBUS; one that was cut before is refused with PYI_MODEL_FILE.
 *
 * Handles. A pyi_model, pyi_session, pyi_sampler or pyi_adapters comes from the _open call of its kind and goes with the _close
 * call, which frees it. It is a number in the shape of a pointer and is looked up by every call: NULL, a handle that was closed
 * and one of another kind are refused with PYI_REQUEST. Closing NULL does nothing. A session keeps the model and the adapters that
 * it runs with, adapters keep their model: handles may be closed in any order.
 *
 * Memory. What goes in is read during the call and copied if it is needed longer. What comes out is written to the caller's
 * memory, or is a pointer that says how long it lives.
 *
 * Threads. Every function may be called from any thread. Steps of sessions of one model take turns on its threads. A session and a
 * sampler serve one call at a time: a second one meanwhile is refused with PYI_REQUEST, but for what says "at any time". A handle
 * may be closed while another thread's call uses it: what it stands for is freed when that call is done.
 *
 * Forks. A child of fork() has none of the threads of its parent's models: steps on those, truncating their sessions and adapters for those are
 * refused with PYI_REQUEST, closing works, and so does opening another model.
 *
 * Structs. A struct that begins with `size` may grow at its end in later versions. Its _init call takes sizeof and fills in the
 * defaults; whoever was compiled with a shorter struct gets the defaults of what it does not know, whoever was compiled with a
 * longer one gets PYI_UNSUPPORTED if it sets, to anything but 0, a field that this library does not know.
 */
#ifndef PYINFER_H
#define PYINFER_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(PYINFER_BUILDS_LIBRARY)
#define PYI_API __declspec(dllexport)
#else
#define PYI_API __declspec(dllimport)
#endif
#else
#define PYI_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when something of this header changes its meaning or goes; additions do not count. */
#define PYI_ABI_VERSION 1

typedef struct pyi_model pyi_model;       /* a model with threads and room to work in */
typedef struct pyi_session pyi_session;   /* one timeline of tokens with its KV cache */
typedef struct pyi_sampler pyi_sampler;   /* picks tokens from logits */
typedef struct pyi_adapters pyi_adapters; /* a stack of LoRA adapters, packed for one model; never changes */

typedef int32_t pyi_status;
enum {
  PYI_OK = 0,
  PYI_MODEL_FILE = 1,   /* a file that is not what it should be: cut, mislabelled, inconsistent or hostile */
  PYI_UNSUPPORTED = 2,  /* asks for something that this library does not do */
  PYI_REQUEST = 3,      /* an argument outside its limits, or a handle that is not open */
  PYI_CONTEXT_FULL = 4, /* more tokens than the session's context holds */
  PYI_CANCELLED = 5,    /* pyi_session_cancel() or the poll function said so */
  PYI_MEMORY = 6,       /* memory or threads that the system refused */
  PYI_SYSTEM = 7,       /* a failed system call; pyi_last_error_code() has its errno */
  PYI_INTERNAL = 8      /* a fault of this library, or an exception of the caller's poll function */
};

/* ---- The library ---- */

/* PYI_ABI_VERSION of the library; differs from the header's if they do not belong together. */
PYI_API uint32_t pyi_abi_version(void);

/* The version of pyinfer, such as "0.1.0". Lives as long as the library. */
PYI_API const char* pyi_version(void);

/* The name of a status, such as "PYI_REQUEST"; "unknown" for other numbers. Lives as long as the library. */
PYI_API const char* pyi_status_name(pyi_status status);

/* The sentence of the last call of this thread that failed; "" before one did. Lives until this thread's next failing call. */
PYI_API const char* pyi_last_error(void);

/* The errno of the last call of this thread that failed, if it failed with PYI_SYSTEM; else 0. */
PYI_API int32_t pyi_last_error_code(void);

/* The instruction set in use: the best that runs here, or what the environment variable PYINFER_ISA named when a model was opened
 * first. Lives as long as the library. NULL if PYINFER_ISA names none that runs here; pyi_last_error() says so. */
PYI_API const char* pyi_isa(void);

/* Threads that a model takes unless told otherwise: physical cores within the affinity mask and the cgroup's quota. */
PYI_API int32_t pyi_default_threads(void);

/* ---- Models ---- */

enum { PYI_INT8 = 0, PYI_FLOAT32 = 1 }; /* activations: fast, or the slow reference */
enum { PYI_HUGE_PAGES_AUTO = 0, PYI_HUGE_PAGES_ON = 1, PYI_HUGE_PAGES_OFF = 2 };
/* Keys and values: halves, bytes with scales in about half the memory, or 16-bit integers with scales; _AUTO: _I16 where the processor is
 * faster with them, activations are PYI_INT8 and keys have no bias, else _F16. With each of the others logits have the same bits on every processor. */
enum { PYI_KV_F16 = 0, PYI_KV_Q8 = 1, PYI_KV_I16 = 2, PYI_KV_AUTO = 3 };

typedef struct pyi_model_options {
  size_t size;
  int32_t threads;     /* 1 ... 256 that work on one step, the caller's included; 0 (default): pyi_default_threads() */
  int32_t activations; /* PYI_INT8 (default) or PYI_FLOAT32 */
  uint64_t context_limit; /* tokens that a session may hold at most; 0 (default): what the model was trained for */
  int32_t prefetch; /* 1 (default): the system reads the whole file ahead, in the background; 0: as it is needed */
  int32_t kv;       /* PYI_KV_AUTO (default), _F16, _I16 or _Q8, for sessions that do not choose */
  /* PYI_HUGE_PAGES_AUTO (default): pages of 2 MiB where the file's cache has them; _ON: in a private copy of the file, read when the
   * model is opened, which takes `prefetch` 1; _OFF: none are asked for */
  int32_t huge_pages;
  int32_t reserved; /* 0 */
} pyi_model_options;

PYI_API pyi_status pyi_model_options_init(pyi_model_options* options, size_t size);

/* Opens, checks and maps a model.bin. `options` may be NULL: the defaults. The path is in the system's encoding (UTF-8 on Windows).
 * PYI_SYSTEM, PYI_MODEL_FILE, PYI_REQUEST for options and for PYINFER_ISA, PYI_UNSUPPORTED for options or kernels that are not there,
 * PYI_MEMORY. */
PYI_API pyi_status pyi_model_open(const char* path, const pyi_model_options* options, pyi_model** model);
PYI_API void pyi_model_close(pyi_model* model);

typedef struct pyi_model_info {
  size_t size;
  uint32_t n_layers;
  uint32_t dim; /* width of the residual stream */
  uint32_t n_heads;
  uint32_t n_kv_heads;
  uint32_t head_dim;
  uint32_t n_ff;
  uint32_t n_vocab; /* tokens are 0 ... n_vocab - 1 */
  uint32_t rope_dim;
  uint64_t context; /* positions the model was trained for */
  float norm_eps;
  float rope_magnitude;
  float attention_scale;
  int32_t tied_head; /* 1: embedding and head are one tensor */
  int32_t threads;
  int32_t activations;
  uint64_t file_bytes;
  uint64_t n_tensors;
} pyi_model_info;

/* Fills in `size` bytes of the struct; those that this library does not know become 0. */
PYI_API pyi_status pyi_model_get_info(const pyi_model* model, pyi_model_info* info, size_t size);

typedef struct pyi_memory {
  size_t size;
  uint64_t weights;   /* bytes of the mapped file; the system may drop and read them again */
  uint64_t kv_cache;  /* bytes of one session, resident as it fills */
  uint64_t workspace; /* bytes once a model, resident as they are used */
} pyi_memory;

/* Memory of a model with one session of `context` tokens whose keys and values are kept as `kv` says. With prefetch 0 nothing of
 * the weights has been read yet, so that one may ask before loading. */
PYI_API pyi_status pyi_model_get_memory(const pyi_model* model, uint64_t context, int32_t kv, pyi_memory* memory,
                                        size_t size);

/* The tokenizer and the metadata (JSON, UTF-8) as they lie in the file, checksums verified; docs/model-file.md describes them. No
 * zero byte follows. Live until the model and all that keeps it are closed. */
PYI_API pyi_status pyi_model_get_tokenizer(const pyi_model* model, const uint8_t** data, size_t* size);
PYI_API pyi_status pyi_model_get_metadata(const pyi_model* model, const uint8_t** data, size_t* size);

typedef struct pyi_tensor {
  size_t size;
  const char* role;   /* "q", "embedding" ...: as docs/model-file.md has them. Lives as long as the library. */
  const char* format; /* "q4", "vector" ... Lives as long as the library. */
  int64_t layer;      /* -1 outside the layers */
  uint64_t rows;
  uint64_t cols;
  uint64_t bytes;
} pyi_tensor;

/* What the file holds under a number, 0 ... n_tensors - 1. */
PYI_API pyi_status pyi_model_get_tensor(const pyi_model* model, uint64_t index, pyi_tensor* tensor, size_t size);

/* Whether a tensor's bytes match its checksum: *matches becomes 1 or 0. Reads all of them. */
PYI_API pyi_status pyi_model_verify(const pyi_model* model, uint64_t index, int32_t* matches);

/* ---- Sessions ---- */

typedef struct pyi_session_options {
  size_t size;
  uint64_t context; /* tokens it can hold, up to the model's context_limit; 0 (default): that limit */
  int32_t kv;       /* PYI_KV_AUTO, _F16, _I16 or _Q8; -1 (default): as the model's options say */
  int32_t reserved; /* 0 */
} pyi_session_options;

PYI_API pyi_status pyi_session_options_init(pyi_session_options* options, size_t size);

/* A session that holds nothing yet. `options` may be NULL: the defaults. PYI_MEMORY if its cache cannot be had. */
PYI_API pyi_status pyi_session_open(pyi_model* model, const pyi_session_options* options, pyi_session** session);
PYI_API void pyi_session_close(pyi_session* session);

PYI_API pyi_status pyi_session_get_position(const pyi_session* session,
                                            uint64_t* position); /* tokens held; at any time */
PYI_API pyi_status pyi_session_get_context(const pyi_session* session, uint64_t* context);

/* Forgets all tokens from `position` on. */
PYI_API pyi_status pyi_session_truncate(pyi_session* session, uint64_t position);

/* Appends tokens in passes of up to 512, and one token. The logits of the last one are then at pyi_session_logits().
 * PYI_CONTEXT_FULL and PYI_REQUEST come before any work. After any other failure the session holds the passes that were done before it;
 * pyi_session_get_position() tells. */
PYI_API pyi_status pyi_session_prefill(pyi_session* session, const int32_t* tokens, size_t n_tokens);
PYI_API pyi_status pyi_session_step(pyi_session* session, int32_t token);

/* Logits (n_vocab) of the last token that pyi_session_prefill() or _step() evaluated; rubbish while one runs or after one failed. The
 * pointer stays the same until the session is closed. NULL if the handle is not open. */
PYI_API const float* pyi_session_logits(const pyi_session* session);

enum { PYI_NO_LOGITS = 0, PYI_LAST_LOGITS = 1, PYI_ALL_LOGITS = 2 };

typedef struct pyi_eval_options {
  size_t size;
  int32_t wanted; /* PYI_LAST_LOGITS (default), PYI_NO_LOGITS or PYI_ALL_LOGITS */
  uint32_t chunk; /* tokens a pass, 1 ... 512 (default) */
  /* Asked between layers, by the calling thread; not 0: PYI_CANCELLED. NULL (default): nobody. It may call what this header has, but
   * steps and adapters of the same model are refused with PYI_REQUEST, and two threads that step each other's models in their polls wait for
   * ever. */
  int32_t (*poll)(void* context);
  void* poll_context; /* what it is called with */
} pyi_eval_options;

PYI_API pyi_status pyi_eval_options_init(pyi_eval_options* options, size_t size);

/* Appends tokens, as prefill does, with a choice of logits and a function that may end it. `logits` takes n_vocab floats for each
 * token whose logits are wanted; n_logits, the floats that it has room for, must be that many. Neither is needed for none. After
 * a failure that did not come before any work, what is in `logits` is rubbish. */
PYI_API pyi_status pyi_session_eval(pyi_session* session, const int32_t* tokens, size_t n_tokens,
                                    const pyi_eval_options* options, float* logits, size_t n_logits);

/* What one session appends in a pass with others. */
typedef struct pyi_batch_item {
  pyi_session* session;
  const int32_t* tokens;
  size_t n_tokens;
  float* logits; /* as in pyi_session_eval() */
  size_t n_logits;
  int32_t wanted;
  int32_t reserved; /* 0 */
} pyi_batch_item;

/* Appends tokens to several sessions of one model, each at most once, at most 512 tokens together, in one pass over the weights.
 * After a failure no session holds more than before; unless it was PYI_REQUEST or PYI_CONTEXT_FULL, what is in their `logits` is rubbish.
 * `item_size` is sizeof(pyi_batch_item). Of `options` only the poll function counts; may be NULL. */
PYI_API pyi_status pyi_model_forward(pyi_model* model, const pyi_batch_item* items, size_t n_items, size_t item_size,
                                     const pyi_eval_options* options);

/* Makes a running or the next step of the session fail with PYI_CANCELLED. At any time. */
PYI_API pyi_status pyi_session_cancel(pyi_session* session);

/* What the next step runs with; NULL: the model alone. At any time: a step that runs keeps what it began with. Tokens that are held
 * stay as they were evaluated. PYI_REQUEST for adapters of another model. */
PYI_API pyi_status pyi_session_set_adapters(pyi_session* session, pyi_adapters* adapters);

/* ---- Adapters ---- */

enum { PYI_F32 = 0, PYI_F16 = 1, PYI_BF16 = 2 };

/* Values (rows, cols), row by row, in the machine's byte order. A list of numbers has one row. */
typedef struct pyi_values {
  const void* data; /* NULL: none */
  size_t rows;
  size_t cols;
  int32_t type;
  int32_t reserved; /* 0 */
} pyi_values;

/* What a stack does to one linear: y = gain * (W x) + B (scale * (A x)) + bias. For a stack of several adapters A's stand below one
 * another, B's side by side, and scale has weight times scaling of the adapter that each row of A came from. Rows of q and k are in
 * half-split rotary order, as transformers has them. "head" and "embedding" are two linears also where they are one tensor. */
typedef struct pyi_adapter_module {
  const char* role; /* "q", "k", "v", "o", "gate", "up", "down", "head" or "embedding" */
  int64_t layer;    /* -1 for head and embedding */
  pyi_values a;     /* (rank, inputs); embedding: (rank, n_vocab) */
  pyi_values b;     /* (outputs, rank); together with `a` or not at all */
  pyi_values scale; /* (rank) of PYI_F32; none: ones */
  pyi_values gain;  /* (outputs) of PYI_F32; none: ones */
  pyi_values bias;  /* (outputs) of PYI_F32; none: zeros */
} pyi_adapter_module;

/* A tensor that stands in for the model's, of the same shape. Where embedding and head are one tensor, "embedding" is what tokens are
 * looked up in, and the head stays the model's unless "head" is given too. */
typedef struct pyi_replaced_tensor {
  const char* role;   /* any of the file but the rotary frequencies */
  int64_t layer;      /* -1 outside the layers */
  pyi_values values;  /* of PYI_F32 */
  const char* format; /* what a matrix is packed to: "f32", "f16", "q8" ...; NULL: "f32" */
} pyi_replaced_tensor;

typedef struct pyi_adapters_options {
  size_t size;
  const pyi_adapter_module* modules;
  size_t n_modules;
  size_t module_size; /* sizeof(pyi_adapter_module) */
  const pyi_replaced_tensor* replaced;
  size_t n_replaced;
  size_t replaced_size; /* sizeof(pyi_replaced_tensor) */
} pyi_adapters_options;

PYI_API pyi_status pyi_adapters_options_init(pyi_adapters_options* options, size_t size);

/* Packs a stack for a model; the arrays may be freed afterwards. Any number of sessions may use it. PYI_REQUEST names role, layer,
 * expected and found. Waits for a step of the model that runs. */
PYI_API pyi_status pyi_adapters_open(pyi_model* model, const pyi_adapters_options* options, pyi_adapters** adapters);
PYI_API void pyi_adapters_close(pyi_adapters* adapters);

/* Memory that it takes. */
PYI_API pyi_status pyi_adapters_get_bytes(const pyi_adapters* adapters, uint64_t* bytes);

/* ---- Sampling ---- */

typedef struct pyi_logit_bias {
  int32_t token;
  float bias; /* -1000 ... 1000, or -INFINITY to forbid the token */
} pyi_logit_bias;

/* In the order in which they act, but for the temperature, which acts last. */
typedef struct pyi_sampling {
  size_t size;
  uint64_t seed;                    /* 0 */
  const pyi_logit_bias* logit_bias; /* NULL; each token at most once */
  size_t n_logit_bias;              /* 0 */
  float
      repetition_penalty; /* 1; 0.01 ... 100; divides positive logits of tokens seen, multiplies the others; 1 is off */
  float presence_penalty; /* 0; -100 ... 100; subtracted once from the logits of tokens seen; 0 is off */
  float frequency_penalty; /* 0; -100 ... 100; subtracted for each time a token was seen; 0 is off */
  int32_t penalty_window;  /* 64; 0 ... 1048576; how many of the last accepted tokens count as seen */
  int32_t top_k;           /* 40; 0 ...; the k greatest logits stay; 0 is off */
  float typical_p;         /* 1; 0 ... 1; the most typical tokens that hold this probability stay; 1 is off */
  float top_p;             /* 0.95; 0 ... 1; the likeliest tokens that hold this probability stay; 1 is off */
  float min_p;             /* 0.05; 0 ... 1; tokens stay that have this share of the likeliest one's; 0 is off */
  float temperature;       /* 0.8; 0 ... 100; 0 picks the greatest logit, ties go to the lowest token */
  int32_t reserved;        /* 0 */
} pyi_sampling;

/* The defaults above. */
PYI_API pyi_status pyi_sampling_init(pyi_sampling* sampling, size_t size);

/* A sampler for logits of n_vocab tokens. `sampling` may be NULL: the defaults. Same parameters, same logits and same tokens accepted
 * give the same picks, on every platform. PYI_REQUEST names the parameter, its value and its limits. */
PYI_API pyi_status pyi_sampler_open(uint32_t n_vocab, const pyi_sampling* sampling, pyi_sampler** sampler);
PYI_API void pyi_sampler_close(pyi_sampler* sampler);

/* The next token. Does not change the logits; n_logits must be n_vocab. PYI_REQUEST where one is NaN or +inf, or all are -inf. */
PYI_API pyi_status pyi_sampler_pick(pyi_sampler* sampler, const float* logits, size_t n_logits, int32_t* token);

/* Tells the penalties of a token of the prompt or of the answer; pick does not do so by itself. */
PYI_API pyi_status pyi_sampler_accept(pyi_sampler* sampler, int32_t token);

#ifdef __cplusplus
}
#endif

#endif
