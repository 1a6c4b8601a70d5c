// A test framework of a dozen lines: the library must be testable with a compiler and nothing else.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);   \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (0)

#define CHECK_STATUS(expression, expected)                                                             \
  do {                                                                                                 \
    const int status_ = (expression);                                                                  \
    if (status_ != (expected)) {                                                                       \
      std::fprintf(stderr, "%s:%d: %s is %d (%s)\n", __FILE__, __LINE__, #expression, status_,         \
                   bd_strerror(status_));                                                              \
      std::exit(1);                                                                                    \
    }                                                                                                  \
  } while (0)

#define CHECK_OK(expression) CHECK_STATUS(expression, BD_OK)
