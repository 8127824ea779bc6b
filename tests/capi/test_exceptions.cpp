// What a poll function of a C++ program throws ends at the interface, with a status, and the session goes on.
//
//     capi_exceptions TINY_MODEL.bin
#include <cstring>
#include <stdexcept>

#include "pyinfer.h"

namespace {

int32_t throws_a_number(void*) { throw 5; }
int32_t throws_a_sentence(void*) { throw std::runtime_error("the caller's own"); }

bool ends_with(pyi_session* session, int32_t (*poll)(void*), const char* sentence) {
  const int32_t tokens[] = {1, 2, 3};
  pyi_eval_options options;
  if (pyi_eval_options_init(&options, sizeof options) != PYI_OK) return false;
  options.wanted = PYI_NO_LOGITS;
  options.poll = poll;
  if (pyi_session_eval(session, tokens, 3, &options, nullptr, 0) != PYI_INTERNAL) return false;
  if (std::strstr(pyi_last_error(), sentence) == nullptr) return false;
  options.poll = nullptr;
  return pyi_session_eval(session, tokens, 3, &options, nullptr, 0) == PYI_OK;
}

}  // namespace

int main(int argc, char** argv) {
  pyi_model* model = nullptr;
  pyi_session* session = nullptr;
  if (argc != 2 || pyi_model_open(argv[1], nullptr, &model) != PYI_OK) return 2;
  if (pyi_session_open(model, nullptr, &session) != PYI_OK) return 3;
  const bool fine = ends_with(session, throws_a_number, "expected no exception, found one of an unknown type") &&
                    ends_with(session, throws_a_sentence, "the caller's own");
  pyi_session_close(session);
  pyi_model_close(model);
  return fine ? 0 : 1;
}
