// An engine in C. Its KV lies in shared memory, where the depot copies the blocks. So no call contains KV.
//
//   gcc -O2 -o engine engine.c
//   ./engine [ADDRESS]      default: 127.0.0.1:50051. Serves a request for each line of the standard input.
//
// C has no gRPC library of its own. Here `buf curl` makes the calls, a process for each, which is enough to see them. An
// engine makes them with gRPC's C++ library and stubs of protos/kvdepot/v1; the memory and the layout stay as they are.

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LAYERS = 2, BLOCKS = 128, BLOCK_SIZE = 16, HEADS = 2, HEAD_BYTES = 32, TOKENS = 600, ANSWER_BYTES = 1 << 16 };
enum { PROMPT_BLOCKS = (TOKENS + BLOCK_SIZE - 1) / BLOCK_SIZE };

typedef uint8_t Token[HEADS][HEAD_BYTES];
typedef Token Plane[BLOCKS][BLOCK_SIZE];

static Plane (*kv)[2];  // [LAYERS][K and V]
static const size_t KV_BYTES = LAYERS * 2 * sizeof(Plane);
static const char *address = "127.0.0.1:50051";
static char name[64], instance[64];
static pid_t attachment = -1;  // the process that keeps the stream open
static int chunk_size;

static void die(const char *what) {
    perror(what);
    exit(1);
}

// Start `buf curl` with a request, and return its output.
static FILE *start_call(const char *rpc, const char *request, pid_t *pid) {
    int ends[2];
    char url[256];
    snprintf(url, sizeof url, "http://%s/kvdepot.v1.CacheService/%s", address, rpc);
    if (pipe2(ends, O_CLOEXEC) != 0) die("pipe2");
    if ((*pid = fork()) == 0) {
        int nowhere = open("/dev/null", O_RDWR);
        dup2(nowhere, 0);
        dup2(ends[1], 1);
        dup2(nowhere, 2);
        execlp("buf", "buf", "curl", "--protocol", "grpc", "-d", request, url, NULL);
        _exit(127);
    }
    close(ends[1]);
    return fdopen(ends[0], "r");
}

// Make a call, and return whether it succeeded. The answer is JSON.
static bool call(const char *rpc, const char *request, char *answer) {
    pid_t pid;
    FILE *output = start_call(rpc, request, &pid);
    size_t length = fread(answer, 1, ANSWER_BYTES - 1, output);
    answer[length] = 0;
    fclose(output);
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// The number after "key": of an answer; 0 if it is not there, as JSON leaves out zeros.
static int number_of(const char *answer, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *found = strstr(answer, quoted);
    return found ? atoi(found + strlen(quoted) + strspn(found + strlen(quoted), " \"")) : 0;
}

static void remove_memory(void) { shm_unlink(name); }

static void make_memory(void) {
    snprintf(name, sizeof name, "kvdepot-c-%d", getpid());
    snprintf(instance, sizeof instance, "c-%d", getpid());
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) die(name);
    atexit(remove_memory);
    if (posix_fallocate(fd, 0, KV_BYTES) != 0) die("posix_fallocate");  // all pages: a lack of memory shows here
    kv = mmap(NULL, KV_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (kv == MAP_FAILED) die("mmap");
    close(fd);
}

// Attach, and return whether the depot has acknowledged it. The stream lives as long as its process.
static bool attach(void) {
    char request[4096], line[256];
    int length = snprintf(request, sizeof request,
        "{\"instance_id\": \"%s\", \"model_name\": \"c-example\", \"model_revision\": \"1\", \"world_size\": 1, "
        "\"rank\": 0, \"regions\": [{\"size_bytes\": %zu, \"posix_shm\": {\"name\": \"%s\"}}], "
        "\"groups\": [{\"num_layers\": %d, \"num_blocks\": %d, "
        "\"block_size\": %d, \"num_heads\": %d, \"head_bytes\": %d, \"dtype\": \"int8\", \"block_stride_bytes\": %zu, "
        "\"token_stride_bytes\": %zu, \"head_stride_bytes\": %d, \"planes\": [",
        instance, KV_BYTES, name, LAYERS, BLOCKS, BLOCK_SIZE, HEADS, HEAD_BYTES, BLOCK_SIZE * sizeof(Token), sizeof(Token),
        HEAD_BYTES);
    for (int plane = 0; plane < 2 * LAYERS; plane++)
        length += snprintf(request + length, sizeof request - length,
            "%s{\"layer\": %d, \"kind\": \"%s\", \"offset_bytes\": %zu}", plane ? ", " : "", plane / 2,
            plane % 2 ? "PLANE_KIND_V" : "PLANE_KIND_K", plane * sizeof(Plane));
    snprintf(request + length, sizeof request - length, "]}]}");
    FILE *messages = start_call("AttachInstance", request, &attachment);
    for (chunk_size = 0; chunk_size == 0 && fgets(line, sizeof line, messages);) chunk_size = number_of(line, "chunkSize");
    if (chunk_size) return true;  // `messages` stays open: a notice must not block its writer
    fclose(messages);
    waitpid(attachment, NULL, 0);
    attachment = -1;
    return false;
}

// Whether the depot still holds the attachment. If it restarted, attach again.
static bool is_attached(void) {
    if (attachment > 0 && waitpid(attachment, NULL, WNOHANG) == 0) return true;
    return attach();
}

static uint8_t kv_byte(int token, int plane, int index) { return token * 31 + plane * 7 + index; }

// Compute the KV of a prompt from a position on, or compare it with what is in the blocks.
static bool each_token(const int *tokens, const int *blocks, int from, bool compute) {
    for (int position = from; position < TOKENS; position++)
        for (int plane = 0; plane < 2 * LAYERS; plane++) {
            uint8_t *bytes = (uint8_t *)kv[plane / 2][plane % 2][blocks[position / BLOCK_SIZE]][position % BLOCK_SIZE];
            for (int index = 0; index < (int)sizeof(Token); index++) {
                uint8_t right = kv_byte(tokens[position], plane, index);
                if (compute) bytes[index] = right;
                else if (bytes[index] != right) return false;
            }
        }
    return true;
}

// Append a list of numbers to a request.
static void append_list(char *request, const int *numbers, int count) {
    for (int index = 0; index < count; index++)
        sprintf(request + strlen(request), "%s%d", index ? ", " : "", numbers[index]);
}

// Serve a request, and return how many of its tokens were retrieved; -1 without a depot.
static int serve(int session, const int *tokens, const int *blocks) {
    static char request[1 << 16], answer[ANSWER_BYTES], lease[128];
    int matched = 0;
    if (!is_attached()) {
        each_token(tokens, blocks, 0, true);
        return -1;
    }
    sprintf(request, "{\"instance_id\": \"%s\", \"session_id\": \"%d\", \"prefix\": {\"token_ids\": [", instance, session);
    append_list(request, tokens, TOKENS);
    strcat(request, "]}}");
    const char *found = call("Lookup", request, answer) ? strstr(answer, "\"leaseId\": \"") : NULL;
    if (found != NULL) {
        sscanf(found, "\"leaseId\": \"%127[^\"]", lease);
        matched = number_of(answer, "matchedTokens");  // a whole number of chunks
        sprintf(request, "{\"instance_id\": \"%s\", \"session_id\": \"%d\", \"lease_id\": \"%s\", \"block_tables\": "
            "[{\"block_ids\": [", instance, session, lease);
        append_list(request, blocks, matched / BLOCK_SIZE);
        strcat(request, "]}]}");
        if (!call("Retrieve", request, answer)) {
            sprintf(request, "{\"lease_id\": \"%s\"}", lease);
            bool is_released = call("ReleaseLease", request, answer);
            if (!is_released && waitpid(attachment, NULL, WNOHANG) == 0) die("the depot may still write to the blocks");
            matched = 0;
        }
    }
    each_token(tokens, blocks, matched, true);
    if (matched < TOKENS / chunk_size * chunk_size) {
        sprintf(request, "{\"instance_id\": \"%s\", \"session_id\": \"%d\", \"start_token\": %d, \"prefix\": "
            "{\"token_ids\": [", instance, session, matched);
        append_list(request, tokens, TOKENS);
        strcat(request, "]}, \"block_tables\": [{\"block_ids\": [");
        append_list(request, blocks + matched / BLOCK_SIZE, PROMPT_BLOCKS - matched / BLOCK_SIZE);
        strcat(request, "]}]}");
        call("Store", request, answer);  // one that fails costs a later hit
    }
    sprintf(request, "{\"instance_id\": \"%s\", \"session_id\": \"%d\"}", instance, session);
    call("EndSession", request, answer);  // from here on the depot does not touch the blocks
    return matched;
}

int main(int argc, char **argv) {
    if (argc > 1) address = argv[1];
    make_memory();
    int tokens[TOKENS], blocks[PROMPT_BLOCKS], number = 0;
    char line[64];
    for (int index = 0; index < TOKENS; index++) tokens[index] = index * 7919 % 128000;
    while (fgets(line, sizeof line, stdin)) {
        number++;
        for (int index = 0; index < PROMPT_BLOCKS; index++) blocks[index] = (index * 3 + number * 40) % BLOCKS;
        int matched = serve(number, tokens, blocks);
        printf("%s %d of %d tokens; the blocks are %s\n", matched < 0 ? "no depot: retrieved" : "retrieved",
            matched < 0 ? 0 : matched, TOKENS, each_token(tokens, blocks, 0, false) ? "right" : "WRONG");
        fflush(stdout);
    }
    if (attachment > 0) {
        char request[128], answer[ANSWER_BYTES];
        snprintf(request, sizeof request, "{\"instance_id\": \"%s\", \"rank\": 0}", instance);
        call("DetachInstance", request, answer);  // when it answers, the depot has unmapped the memory
        kill(attachment, SIGTERM);
        waitpid(attachment, NULL, 0);
    }
    return 0;
}
