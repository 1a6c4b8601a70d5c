// Status codes inside the library are those of the ABI.
#pragma once

#include "bitdistill.h"

#define BD_RETURN_IF_ERROR(expression)          \
  do {                                          \
    const int bd_status_ = (expression);        \
    if (bd_status_ != BD_OK) return bd_status_; \
  } while (0)

namespace bitdistill {

// The only exceptions here are those of memory that is not there, and of locks.
template <typename F>
int without_exceptions(F&& body) {
  try {
    return body();
  } catch (...) {
    return BD_ERROR_OUT_OF_MEMORY;
  }
}

}  // namespace bitdistill
