// Writes a small random model to the path that is given.
#include <fstream>

#include "tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto bytes = tiny::Model(tiny::Shape(), 1).file();
  std::ofstream file(argv[1], std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return file ? 0 : 1;
}
