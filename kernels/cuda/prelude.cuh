// Types of fixed width, and accesses that spare the caches.
//
// This text is put in front of a source and never included, because CuPy's cache of compiled kernels hashes only the
// text that it is given. ASCII only, because CuPy writes the text in the encoding of the locale.

typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// Each byte is touched once. So loads and stores are marked to leave the GPU's caches first (ld.global.cs and
// st.global.cs), and the data of the engine's own kernels stays there. Blocks are not loaded with ld.global.nc: it
// requires that nothing writes while the kernel runs, and the engine does write to neighbouring blocks.
template <typename Vector>
__device__ __forceinline__ Vector load_once(u64 address) {
    return __ldcs(reinterpret_cast<const Vector*>(address));
}

template <typename Vector>
__device__ __forceinline__ void store_once(u64 address, Vector vector) {
    __stcs(reinterpret_cast<Vector*>(address), vector);
}
