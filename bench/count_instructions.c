// A plugin of QEMU's user-mode emulation that counts executed instructions of 64-bit Arm by kind and writes them when the program ends:
// one line `name count` each. Build and use: docs/arm.md.
//
// The few functions of QEMU's plugin interface (version 1, QEMU 4.2 and later) that it calls are declared here, so that no header of
// QEMU is needed. Kinds follow the top-level encoding table of the Arm architecture manual: bits 28…25 of an instruction.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 = 0 };  // the one inline operation of the interface

int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t id, struct qemu_plugin_tb* block));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int operation, void* counter, uint64_t n);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*ended)(uint64_t id, void* data), void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* block, size_t index);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn* instruction);
void qemu_plugin_outs(const char* text);

enum Kind { kArithmetic, kVectorLoad, kVectorStore, kSpilled, kReloaded, kOther, kKinds };
static const char* const names[kKinds] = {
    "vector-arithmetic", "vector-loads", "vector-stores", "vector-stores-to-stack", "vector-loads-from-stack", "other"};
static uint64_t counters[kKinds];

static enum Kind kind_of(uint32_t code) {
  const uint32_t group = code >> 25 & 15;
  if ((group & 7) == 7) return kArithmetic;
  if ((group & 7) != 6) return kOther;  // no load or store of a vector register
  const int from_stack = (code >> 5 & 31) == 31;
  // Of single registers (size 0 with opc 2 or 3: 128 bits) and of pairs bit 22 says load; so it does for structures.
  const int load = (code >> 22 & 1) != 0;
  if (from_stack) return load ? kReloaded : kSpilled;
  return load ? kVectorLoad : kVectorStore;
}

static void translated(uint64_t id, struct qemu_plugin_tb* block) {
  (void)id;
  uint64_t n[kKinds] = {0};
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    uint32_t code;
    memcpy(&code, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof code);
    ++n[kind_of(code)];
  }
  for (int kind = 0; kind < kKinds; ++kind)
    if (n[kind] != 0) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counters[kind], n[kind]);
}

static void ended(uint64_t id, void* data) {
  (void)id;
  (void)data;
  for (int kind = 0; kind < kKinds; ++kind) {
    char line[64];
    snprintf(line, sizeof line, "%s %llu\n", names[kind], (unsigned long long)counters[kind]);
    qemu_plugin_outs(line);
  }
}

int qemu_plugin_install(uint64_t id, const void* info, int argc, char** argv) {
  (void)info;
  (void)argc;
  (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
