// Status codes inside the library are those of the ABI.
#pragma once

#include "bitdistill.h"

#define BD_RETURN_IF_ERROR(expression)                  \
  do {                                                  \
    const int bd_status_ = (expression);                \
    if (bd_status_ != BD_OK) return bd_status_;         \
  } while (0)
