// Which kernel variants this build holds and this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace sterna {

struct Variant {
  const Kernels* kernels;  // null when the build lacks it
  std::string name;
  std::string reason;  // empty when the variant can run here
  bool test_only;
};

// From the slowest to the fastest.
const std::vector<Variant>& variants();

}  // namespace sterna
