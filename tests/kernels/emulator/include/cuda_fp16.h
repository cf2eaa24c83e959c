// What `#include <cuda_fp16.h>` finds when a .cu file is built for the CPU: the whole vocabulary.
#pragma once
#include "runtime.h"

#include "vectors.h"

#include "half.h"

#include "intrinsics.h"

#include "collectives.h"

#include "export.h"
