// The end of a file of an instruction set.
#pragma once

// Defines what the file gives to the others: `value`, or nullptr where it is compiled without the flags of its instruction set.
#define BITDISTILL_GIVES(function, value)           \
  namespace bitdistill {                            \
  decltype(function()) function() { return value; } \
  }  // namespace bitdistill
