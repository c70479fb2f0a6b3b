// exp, sigmoid, silu and softplus over 16 lanes. Scalars go through lane 0 of the same code: vector body and tail agree
// to the last bit, and no result depends on the C library.
#pragma once

#include "kernels/vec.h"

namespace sterna::STERNA_VARIANT {

// Relative error below 2e-7 for |x| <= 87; outside it saturates at about 1.6e-38 and 6e37.
STERNA_INLINE Vec exp(const Vec& argument) {
  const Vec x = max(min(argument, broadcast(87.0f)), broadcast(-87.0f));
  // Adding 1.5 * 2^23 rounds to the nearest integer.
  const Vec magic = broadcast(12582912.0f);
  const Vec n = fma(x, broadcast(1.44269504088896341f), magic) - magic;
  // ln 2 in two pieces; the first has so few bits that its product with n is exact even without FMA.
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.0f / 5040.0f);
  p = fma(p, r, broadcast(1.0f / 720.0f));
  p = fma(p, r, broadcast(1.0f / 120.0f));
  p = fma(p, r, broadcast(1.0f / 24.0f));
  p = fma(p, r, broadcast(1.0f / 6.0f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return map(
      [](FloatPart y, FloatPart power) STERNA_LAMBDA {
        IntPart exponent = (__builtin_convertvector(power, IntPart) + 127) << 23;
        return y * bits<FloatPart>(exponent);
      },
      p, n);
}

STERNA_INLINE Vec sigmoid(const Vec& x) {
  const Vec one = broadcast(1.0f);
  return one / (one + exp(broadcast(0.0f) - x));
}

STERNA_INLINE Vec silu(const Vec& x) { return x * sigmoid(x); }

// log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|) in (0, 1]; log1p(u) = 2 artanh(s), s = u / (2 + u) <= 1/3.
STERNA_INLINE Vec softplus(const Vec& x) {
  const Vec u = exp(broadcast(0.0f) - abs(x));
  const Vec s = u / (broadcast(2.0f) + u);
  const Vec s2 = s * s;
  Vec p = broadcast(2.0f / 15.0f);
  p = fma(p, s2, broadcast(2.0f / 13.0f));
  p = fma(p, s2, broadcast(2.0f / 11.0f));
  p = fma(p, s2, broadcast(2.0f / 9.0f));
  p = fma(p, s2, broadcast(2.0f / 7.0f));
  p = fma(p, s2, broadcast(2.0f / 5.0f));
  p = fma(p, s2, broadcast(2.0f / 3.0f));
  p = fma(p, s2, broadcast(2.0f));
  return max(x, broadcast(0.0f)) + p * s;
}

STERNA_INLINE float exp(float x) { return lane0(exp(broadcast(x))); }
STERNA_INLINE float sigmoid(float x) { return lane0(sigmoid(broadcast(x))); }
STERNA_INLINE float softplus(float x) { return lane0(softplus(broadcast(x))); }

// Square root and division are correctly rounded everywhere, reciprocal square root instructions are not.
STERNA_INLINE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

}  // namespace sterna::STERNA_VARIANT
