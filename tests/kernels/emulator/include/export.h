// How Python finds a kernel: one record per kernel, with the widths and kinds of its parameters.
#pragma once
#include <type_traits>
#include <utility>

namespace emulated {

struct Parameter {  // mirrored in launch.py
  char kind;        // p pointer, f float, i whole number, s anything else
  char target;      // what a pointer points at: f, i, or v for vectors, structs and void
  unsigned short bytes, target_bytes, target_alignment;
};

struct Export {
  const char* name;
  int count;
  const Parameter* parameters;
  void (*call)(void** args);
};

template <class T> constexpr char kind() {
  return std::is_pointer<T>::value                                      ? 'p'
         : std::is_floating_point<T>::value || std::is_same<T, half>::value ? 'f'
         : std::is_integral<T>::value                                   ? 'i'
                                                                        : 's';
}
template <class T> constexpr Parameter parameter() {
  using Bare = typename std::remove_cv<T>::type;
  using Target = typename std::remove_cv<typename std::remove_pointer<Bare>::type>::type;
  if constexpr (!std::is_pointer<Bare>::value) return {kind<Bare>(), 'v', sizeof(T), 1, 1};
  else if constexpr (std::is_void<Target>::value) return {'p', 'v', sizeof(T), 1, 1};
  else return {'p', kind<Target>() == 's' ? 'v' : kind<Target>(), sizeof(T), sizeof(Target), alignof(Target)};
}

template <class F> struct Signature;
template <class... A> struct Signature<void (*)(A...)> {
  static constexpr int count = sizeof...(A);
  static constexpr Parameter parameters[] = {parameter<A>()..., Parameter{}};
  template <size_t... I> static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(typename std::remove_cv<A>::type*)args[I]...);
  }
  static void call(void (*kernel)(A...), void** args) { call(kernel, args, std::index_sequence_for<A...>{}); }
};

}  // namespace emulated

#define EMULATED_EXPORT(kernel)                                                                              \
  extern "C" __attribute__((visibility("default"))) const emulated::Export emulated_export_##kernel = {      \
      #kernel, emulated::Signature<decltype(&kernel)>::count, emulated::Signature<decltype(&kernel)>::parameters, \
      [](void** args) { emulated::Signature<decltype(&kernel)>::call(&kernel, args); }};

// Static shared arrays are all that stays zero-filled in a file's data: kernels have no other variables.
extern "C" {
extern unsigned char __bss_start[] __attribute__((visibility("hidden")));
extern unsigned char _end[] __attribute__((visibility("hidden")));
}
#define EMULATED_STATICS                                                                                    \
  extern "C" __attribute__((visibility("default"))) unsigned char* const emulated_statics[2] = {__bss_start, _end};
