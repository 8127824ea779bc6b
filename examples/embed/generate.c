/* Continues a prompt of token ids: pyinfer in a C program.
 *
 *     generate MODEL.bin N_TOKENS TOKEN [TOKEN ...]
 *
 * Prints the ids of the answer, greedily chosen. Text and token ids are turned into one another by the tokenizer that lies in the file
 * (pyi_model_get_tokenizer), or beforehand: `pyinfer tokenize MODEL --ids`. Built as README.md beside it says. */
#include <pyinfer.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* what, pyi_status status) {
  fprintf(stderr, "%s: %s: %s\n", what, pyi_status_name(status), pyi_last_error());
  return 1;
}

/* Evaluates the prompt, then picks, prints and evaluates token after token. */
static int answer(pyi_session* session, pyi_sampler* sampler, size_t n_vocab, const int32_t* prompt, size_t n_prompt,
                  int n_tokens) {
  pyi_status status = pyi_session_prefill(session, prompt, n_prompt);
  for (int i = 0; i < n_tokens && status == PYI_OK; ++i) {
    int32_t token = 0;
    status = pyi_sampler_pick(sampler, pyi_session_logits(session), n_vocab, &token);
    if (status != PYI_OK) break;
    printf("%d%c", token, i + 1 < n_tokens ? ' ' : '\n');
    if (i + 1 < n_tokens) status = pyi_session_step(session, token);
  }
  return status == PYI_OK ? 0 : failed("answer", status);
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s MODEL.bin N_TOKENS TOKEN [TOKEN ...]\n", argv[0]);
    return 2;
  }
  if (pyi_abi_version() != PYI_ABI_VERSION) {
    fprintf(stderr, "expected ABI %d, found %u: the library is not of this header\n", PYI_ABI_VERSION,
            pyi_abi_version());
    return 1;
  }
  size_t n_prompt = (size_t)argc - 3;
  int32_t* prompt = malloc(n_prompt * sizeof *prompt);
  if (prompt == NULL) return 1;
  for (size_t i = 0; i < n_prompt; ++i) prompt[i] = (int32_t)strtol(argv[i + 3], NULL, 10);

  pyi_model* model = NULL;
  pyi_session* session = NULL;
  pyi_sampler* sampler = NULL;
  pyi_model_info info;
  pyi_sampling sampling;
  pyi_status status = pyi_model_open(argv[1], NULL, &model);
  if (status == PYI_OK) status = pyi_model_get_info(model, &info, sizeof info);
  if (status == PYI_OK) status = pyi_session_open(model, NULL, &session);
  if (status == PYI_OK) status = pyi_sampling_init(&sampling, sizeof sampling);
  if (status == PYI_OK) {
    sampling.temperature = 0; /* the likeliest token */
    status = pyi_sampler_open(info.n_vocab, &sampling, &sampler);
  }
  int code = status != PYI_OK ? failed(argv[1], status)
                              : answer(session, sampler, info.n_vocab, prompt, n_prompt, atoi(argv[2]));
  pyi_sampler_close(sampler); /* closing NULL does nothing */
  pyi_session_close(session);
  pyi_model_close(model);
  free(prompt);
  return code;
}
