// What the CUDA sources of this package share: types of fixed width, and accesses that stay out of the caches' way.
//
// This text is put in front of a source, it is never included: CuPy's cache of compiled kernels knows only the text it
// is given. ASCII only, because CuPy writes it to a file in the encoding of the locale.

typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// Each byte is touched once, so loads and stores are marked to be the first to leave L1 and L2 (ld.global.cs and
// st.global.cs): what the engine's own kernels keep there stays. Nothing here is loaded with ld.global.nc. It promises
// that no one writes while the kernel runs, and the engine does write to blocks that are neighbours of ours.
template <typename Vector>
__device__ __forceinline__ Vector load_once(u64 address) {
    return __ldcs(reinterpret_cast<const Vector*>(address));
}

template <typename Vector>
__device__ __forceinline__ void store_once(u64 address, Vector vector) {
    __stcs(reinterpret_cast<Vector*>(address), vector);
}
