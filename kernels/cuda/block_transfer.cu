// Gather and scatter: blocks of an engine's paged KV buffer into contiguous chunks, and back.
//
// One kernel serves every layout. A layout is only the address of each plane, the stride of a block, and up to two loops
// around a run, the longest piece that is contiguous on both sides. For plane p, block b and the indices i, j of the
// loops, run_bytes are
//
//     engine:  plane_addresses[p] + block_ids[b] * block_stride_bytes
//              + i * outer.engine_stride_bytes + j * inner.engine_stride_bytes
//     chunk:   chunks_base + block_places[b].chunk * chunk_pitch_bytes
//              + plane_chunk_offsets[p] + block_places[b].block * block_bytes
//              + i * outer.chunk_stride_bytes + j * inner.chunk_stride_bytes
//
// All but the first line of a chunk's address is the offset in the chunk, which the checksum needs. The kernels sum the
// bytes that they load: a gather those of the engine, a scatter those that have come over the link.
//
// The unit of work is a vector, as wide as all alignments allow (access_bytes). Vectors are numbered in the order of a
// chunk's bytes: the vectors of a run, the runs of a block, the blocks of a plane, the planes. So neighbouring threads
// touch neighbouring bytes of the chunk, runs shorter than a warp's 512 bytes leave no thread idle, and a long run is
// walked by whole CTAs, 8 KiB each. Threads stride by the grid, whatever its size.
//
// No thread computes such a number. It keeps the number's digits (Position) and adds the digits of the stride, with
// carries. So only the start divides, and no total can overflow.

struct Loop {
    i64 count;  // 1 if there is no such loop
    i64 engine_stride_bytes;
    i64 chunk_stride_bytes;
};

// Where a block goes: the number of its chunk in the launch, and its own number in the chunk.
using Place = uint2;

// What one launch copies. Each field has 8 bytes. Each count is in 1 .. 2**31 - 1; a run counts in vectors.
struct KernelParams {
    const u64* plane_addresses;      // [num_planes], where block 0, token 0, head 0 is
    const i64* plane_chunk_offsets;  // [num_planes]
    const i64* block_ids;            // [num_blocks]
    const Place* block_places;       // [num_blocks]
    u64 chunks_base;                 // where chunk 0 of the launch begins
    i64 chunk_pitch_bytes;           // from one chunk to the next
    u64* sums;                       // [chunks], to which the chunks' checksums are added, or null
    i64 num_planes;
    i64 num_blocks;
    i64 block_stride_bytes;
    i64 block_bytes;
    i64 run_bytes;
    Loop outer;
    Loop inner;
    i64 access_bytes;  // 16, 8, 4, 2 or 1; at least 8 with sums
};
static_assert(sizeof(Loop) == 24 && sizeof(KernelParams) == 152, "kernel.KERNEL_PARAMS has the same fields");

constexpr int kMaxThreads = 512;     // of a CTA
constexpr int kVectorsInFlight = 4;  // of a thread, so that a CTA loads 32 KiB before it stores any

// The digits of a vector's number, the fastest first. Also their radixes; the last digit has no limit.
struct Position {
    u32 vector;
    u32 inner;
    u32 outer;
    u32 block;
    u32 plane;
};

// Returns the lowest digit, and removes it from the number.
__device__ __forceinline__ u32 split_digit(u32& number, u32 radix) {
    const u32 digit = number % radix;
    number /= radix;
    return digit;
}

__device__ __forceinline__ Position position_of(u32 number, const Position& radix) {
    Position at;
    at.vector = split_digit(number, radix.vector);
    at.inner = split_digit(number, radix.inner);
    at.outer = split_digit(number, radix.outer);
    at.block = split_digit(number, radix.block);
    at.plane = number;
    return at;
}

// Returns the carry.
__device__ __forceinline__ u32 add_digit(u32& digit, u32 addend, u32 radix) {
    digit += addend;
    const u32 carry = digit >= radix;
    digit -= carry ? radix : 0;
    return carry;
}

__device__ __forceinline__ void advance(Position& at, const Position& stride, const Position& radix) {
    u32 carry = add_digit(at.vector, stride.vector, radix.vector);
    carry = add_digit(at.inner, stride.inner + carry, radix.inner);
    carry = add_digit(at.outer, stride.outer + carry, radix.outer);
    carry = add_digit(at.block, stride.block + carry, radix.block);
    at.plane += stride.plane + carry;
}

template <bool kGather, typename Vector>
__device__ __forceinline__ void copy_vectors(const KernelParams& params) {
    const Position radix = {
        static_cast<u32>(params.run_bytes / static_cast<i64>(sizeof(Vector))),
        static_cast<u32>(params.inner.count),
        static_cast<u32>(params.outer.count),
        static_cast<u32>(params.num_blocks),
        static_cast<u32>(params.num_planes),
    };
    const Position stride = position_of(gridDim.x * blockDim.x, radix);
    Position at = position_of(blockIdx.x * blockDim.x + threadIdx.x, radix);
    const bool is_summed = sizeof(Vector) >= sizeof(u64) && params.sums != nullptr;
    ChunkSum sum = {__ldg(params.block_places + at.block).x, 0};

    while (is_any_in_warp(at.plane < radix.plane)) {
        Vector vectors[kVectorsInFlight];
        u64 targets[kVectorsInFlight];
        u64 chunk_offsets[kVectorsInFlight];
        u32 chunks[kVectorsInFlight];
        bool is_work[kVectorsInFlight];
#pragma unroll
        for (int n = 0; n < kVectorsInFlight; ++n) {
            is_work[n] = at.plane < radix.plane;
            // Past the end, the last plane is read, so that no branch surrounds the reads of the arrays.
            const u32 plane = is_work[n] ? at.plane : radix.plane - 1;
            const u64 engine = __ldg(params.plane_addresses + plane)
                + __ldg(params.block_ids + at.block) * params.block_stride_bytes
                + at.outer * params.outer.engine_stride_bytes
                + at.inner * params.inner.engine_stride_bytes
                + at.vector * static_cast<u64>(sizeof(Vector));
            const Place place = __ldg(params.block_places + at.block);
            chunks[n] = place.x;
            chunk_offsets[n] = __ldg(params.plane_chunk_offsets + plane)
                + place.y * params.block_bytes
                + at.outer * params.outer.chunk_stride_bytes
                + at.inner * params.inner.chunk_stride_bytes
                + at.vector * static_cast<u64>(sizeof(Vector));
            const u64 chunk = params.chunks_base + place.x * params.chunk_pitch_bytes + chunk_offsets[n];
            if (is_work[n]) vectors[n] = load_once<Vector>(kGather ? engine : chunk);
            targets[n] = kGather ? chunk : engine;
            advance(at, stride, radix);
        }
#pragma unroll
        for (int n = 0; n < kVectorsInFlight; ++n) {
            if (is_work[n]) store_once<Vector>(targets[n], vectors[n]);
        }
        if constexpr (sizeof(Vector) >= sizeof(u64)) {
            if (!is_summed) continue;
#pragma unroll
            for (int n = 0; n < kVectorsInFlight; ++n) {
                change_warp_to_chunk(params.sums, sum, is_work[n] ? chunks[n] : sum.chunk);
                if (is_work[n]) sum.part += part_of(vectors[n], chunk_offsets[n]);
            }
        }
    }
    if (is_summed) add_warp_to_sums(params.sums, sum);
}

template <bool kGather>
__device__ __forceinline__ void copy_blocks(const KernelParams& params) {
    switch (params.access_bytes) {
        case 16: return copy_vectors<kGather, uint4>(params);
        case 8: return copy_vectors<kGather, uint2>(params);
        case 4: return copy_vectors<kGather, unsigned int>(params);
        case 2: return copy_vectors<kGather, unsigned short>(params);
        default: return copy_vectors<kGather, unsigned char>(params);
    }
}

extern "C" __global__ void __launch_bounds__(kMaxThreads) gather_blocks(const KernelParams params) {
    copy_blocks<true>(params);
}

extern "C" __global__ void __launch_bounds__(kMaxThreads) scatter_blocks(const KernelParams params) {
    copy_blocks<false>(params);
}
