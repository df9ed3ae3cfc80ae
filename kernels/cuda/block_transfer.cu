// Gather and scatter: blocks of an engine's paged KV buffer into contiguous chunks, and back.
//
// One kernel for every layout, because a layout is no more than where its planes are, the stride of a block, and up to
// two loops around a run, the longest piece that is contiguous on both sides. For plane p, block b and the indices i, j
// of the loops, run_bytes are
//
//     engine:  plane_addresses[p] + block_ids[b] * block_stride_bytes
//              + i * outer.engine_stride_bytes + j * inner.engine_stride_bytes
//     chunk:   chunks_base + plane_chunk_offsets[p] + chunk_block_offsets[b]
//              + i * outer.chunk_stride_bytes + j * inner.chunk_stride_bytes
//
// Work is numbered by vectors, as wide as the alignment of all of this allows (access_bytes), and numbered as the bytes
// of a chunk are: the vectors of a run, the runs of a block, the blocks of a plane, the planes. So neighbouring lanes
// touch neighbouring bytes of the chunk, runs shorter than a warp's 512 bytes leave no lane idle, and a long run is
// walked by whole CTAs, 8 KiB each. Threads stride by the grid, whatever its size.
//
// A number in this order is never formed. A thread keeps its digits (Position) and adds the digits of the stride to
// them, with carries: no division outside the start, and no total that could overflow.

struct Loop {
    i64 count;  // 1 if there is no such loop
    i64 engine_stride_bytes;
    i64 chunk_stride_bytes;
};

// What one launch copies. Every field has 8 bytes and every count is in 1 .. 2**31 - 1, runs counted in vectors.
struct BlockCopy {
    const u64* plane_addresses;      // [num_planes] of block 0, token 0, head 0
    const i64* plane_chunk_offsets;  // [num_planes]
    const i64* block_ids;            // [num_blocks]
    const i64* chunk_block_offsets;  // [num_blocks] from chunks_base to the block, in a plane at chunk offset 0
    u64 chunks_base;
    i64 num_planes;
    i64 num_blocks;
    i64 block_stride_bytes;
    i64 run_bytes;
    Loop outer;
    Loop inner;
    i64 access_bytes;  // 16, 8, 4, 2 or 1
};
static_assert(sizeof(Loop) == 24 && sizeof(BlockCopy) == 128, "kernel.BLOCK_COPY has the same fields");

constexpr int kMaxThreads = 512;     // of a CTA
constexpr int kVectorsInFlight = 4;  // of a thread: 32 KiB of a CTA are on their way before the first is stored

// The digits of a number of work, the fastest first. Also their radixes; the last has no limit.
struct Position {
    u32 vector;
    u32 inner;
    u32 outer;
    u32 block;
    u32 plane;
};

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
__device__ __forceinline__ void copy_vectors(const BlockCopy& copy) {
    const Position radix = {
        static_cast<u32>(copy.run_bytes / static_cast<i64>(sizeof(Vector))),
        static_cast<u32>(copy.inner.count),
        static_cast<u32>(copy.outer.count),
        static_cast<u32>(copy.num_blocks),
        static_cast<u32>(copy.num_planes),
    };
    const Position stride = position_of(gridDim.x * blockDim.x, radix);
    Position at = position_of(blockIdx.x * blockDim.x + threadIdx.x, radix);

    while (at.plane < radix.plane) {
        Vector vectors[kVectorsInFlight];
        u64 targets[kVectorsInFlight];
        bool is_work[kVectorsInFlight];
#pragma unroll
        for (int n = 0; n < kVectorsInFlight; ++n) {
            is_work[n] = at.plane < radix.plane;
            // Past the end the last plane is looked up, so that there is no branch around the tables.
            const u32 plane = is_work[n] ? at.plane : radix.plane - 1;
            const u64 engine = __ldg(copy.plane_addresses + plane)
                + __ldg(copy.block_ids + at.block) * copy.block_stride_bytes
                + at.outer * copy.outer.engine_stride_bytes
                + at.inner * copy.inner.engine_stride_bytes
                + at.vector * static_cast<u64>(sizeof(Vector));
            const u64 chunk = copy.chunks_base
                + __ldg(copy.plane_chunk_offsets + plane)
                + __ldg(copy.chunk_block_offsets + at.block)
                + at.outer * copy.outer.chunk_stride_bytes
                + at.inner * copy.inner.chunk_stride_bytes
                + at.vector * static_cast<u64>(sizeof(Vector));
            if (is_work[n]) vectors[n] = load_once<Vector>(kGather ? engine : chunk);
            targets[n] = kGather ? chunk : engine;
            advance(at, stride, radix);
        }
#pragma unroll
        for (int n = 0; n < kVectorsInFlight; ++n) {
            if (is_work[n]) store_once<Vector>(targets[n], vectors[n]);
        }
    }
}

template <bool kGather>
__device__ __forceinline__ void copy_blocks(const BlockCopy& copy) {
    switch (copy.access_bytes) {
        case 16: return copy_vectors<kGather, uint4>(copy);
        case 8: return copy_vectors<kGather, uint2>(copy);
        case 4: return copy_vectors<kGather, unsigned int>(copy);
        case 2: return copy_vectors<kGather, unsigned short>(copy);
        default: return copy_vectors<kGather, unsigned char>(copy);
    }
}

extern "C" __global__ void __launch_bounds__(kMaxThreads) gather_blocks(const BlockCopy copy) {
    copy_blocks<true>(copy);
}

extern "C" __global__ void __launch_bounds__(kMaxThreads) scatter_blocks(const BlockCopy copy) {
    copy_blocks<false>(copy);
}
