/* A stand-in for NVIDIA's libnvidia-ml.so.1: every call answers from a text file that is read anew, so a test changes the
 * card by changing the file. It drives the unmodified nvidia-ml-py (and whatever else speaks NVML). The format is in README.md.
 *
 * Build: gcc -shared -Wl,-soname,libnvidia-ml.so.1 -fPIC -O2 -o libnvidia-ml.so.1 nvml.c -lpthread      The file: $COTENANT_NVML_FILE
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int Return; /* nvmlReturn_t */
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
       TIMEOUT = 10, GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18, UNKNOWN = 999 };
enum { MAX_GPUS = 64, MAX_LINES = 4096, TEXT = 96 };

typedef struct { char uuid[TEXT], name[TEXT], bus[32]; unsigned long long total, reserved, base; int mig, links; } Gpu;
typedef struct { char word[8][TEXT]; int words; } Line;
typedef struct { char driver[TEXT]; long generation; Gpu gpu[MAX_GPUS]; int gpus; Line line[MAX_LINES]; int lines; } Card;

/* What a caller holds as nvmlDevice_t: a name that stays valid when the file changes. */
typedef struct { char uuid[TEXT]; } Handle;
static Handle handles[MAX_GPUS * 4];
static int known;
typedef struct { char uuid[MAX_GPUS][TEXT]; int uuids, seen; } EventSet;
typedef struct { Handle *device; unsigned long long type, data; unsigned gi, ci; } EventData;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;        /* nvmlInit calls not yet shut down */
static long generation;  /* the file's at the first of them: another one means that the driver was reloaded */

static Gpu *gpu_named(Card *card, const char *uuid) {
  for (int i = 0; i < card->gpus; i++) if (!strcmp(card->gpu[i].uuid, uuid)) return &card->gpu[i];
  return NULL;
}

static void take_gpu(Card *card, Line *line) {
  if (card->gpus == MAX_GPUS || line->words < 2) return;
  Gpu *gpu = &card->gpu[card->gpus++];
  memset(gpu, 0, sizeof *gpu);
  strcpy(gpu->uuid, line->word[1]); strcpy(gpu->name, "NVIDIA Stand-in"); gpu->links = 18;
  snprintf(gpu->bus, sizeof gpu->bus, "00000000:%02X:00.0", 0x18 + card->gpus - 1);
  for (int i = 2; i < line->words; i++) {
    char *value = strchr(line->word[i], '=');
    if (!value) continue;
    *value++ = 0;
    const char *key = line->word[i];
    if (!strcmp(key, "total")) gpu->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "reserved")) gpu->reserved = strtoull(value, NULL, 10);
    else if (!strcmp(key, "used")) gpu->base = strtoull(value, NULL, 10);
    else if (!strcmp(key, "mig")) gpu->mig = atoi(value);
    else if (!strcmp(key, "links")) gpu->links = atoi(value);
    else if (!strcmp(key, "bus")) snprintf(gpu->bus, sizeof gpu->bus, "%s", value);
    else if (!strcmp(key, "name")) { strcpy(gpu->name, value); for (char *c = gpu->name; *c; c++) if (*c == '_') *c = ' '; }
  }
}

/* Real NVML shows a container the GPUs whose device nodes it was given: $COTENANT_NVML_NODES (say /dev/nvidia) and the index. */
static void keep_visible(Card *card) {
  const char *nodes = getenv("COTENANT_NVML_NODES");
  int kept = 0;
  for (int i = 0; nodes && i < card->gpus; i++) {
    char path[256];
    snprintf(path, sizeof path, "%s%d", nodes, i);
    if (!access(path, F_OK)) card->gpu[kept++] = card->gpu[i];
  }
  if (nodes) card->gpus = kept;
}

/* The file as it is now; NULL when there is none. The caller frees it. */
static Card *read_card(void) {
  const char *path = getenv("COTENANT_NVML_FILE");
  FILE *file = path ? fopen(path, "r") : NULL;
  if (!file) return NULL;
  Card *card = calloc(1, sizeof *card);
  char text[1024];
  strcpy(card->driver, "580.159.04");
  while (fgets(text, sizeof text, file)) {
    Line line = {.words = 0};
    for (char *rest = text, *word; line.words < 8 && (word = strsep(&rest, " \t\r\n")) && word[0] != '#';)
      if (*word) snprintf(line.word[line.words++], TEXT, "%s", word);
    if (!line.words) continue;
    if (!strcmp(line.word[0], "driver") && line.words > 1) strcpy(card->driver, line.word[1]);
    else if (!strcmp(line.word[0], "generation") && line.words > 1) card->generation = atol(line.word[1]);
    else if (!strcmp(line.word[0], "gpu")) take_gpu(card, &line);
    else if (card->lines < MAX_LINES) card->line[card->lines++] = line;
  }
  fclose(file);
  keep_visible(card);
  return card;
}

static int names(const Line *line, const char *kind, int words) { return line->words >= words && !strcmp(line->word[0], kind); }
static int is(const char *pattern, const char *text) { return !strcmp(pattern, "*") || !strcmp(pattern, text); }

/* The error and the delay that the file asks for in this call on this device ("" = none). */
static Return injected(Card *card, const char *function, const char *uuid) {
  Return result = OK;
  for (int i = 0; i < card->lines; i++) {
    Line *line = &card->line[i];
    if (names(line, "delay", 3) && is(line->word[1], function)) usleep((useconds_t)atoi(line->word[2]) * 1000);
    if (names(line, "error", 4) && is(line->word[1], function) && is(line->word[2], uuid) && result == OK) result = atoi(line->word[3]);
  }
  return result;
}

/* Every call begins here: the card as it is now, or why there is no answer. */
static Return begin(const char *function, Handle *device, Card **card, Gpu **gpu) {
  if (!(*card = read_card())) return DRIVER_NOT_LOADED;
  Return result = injected(*card, function, device ? device->uuid : "");
  pthread_mutex_lock(&lock);
  if (!users || (*card)->generation != generation) result = UNINITIALIZED;
  pthread_mutex_unlock(&lock);
  if (!strcmp((*card)->driver, "none")) result = DRIVER_NOT_LOADED;
  if (result == OK && device && !(*gpu = gpu_named(*card, device->uuid))) result = GPU_IS_LOST;
  return result;
}

#define BEGIN(device) Card *card = NULL; Gpu *gpu = NULL; Return result = begin(__func__, device, &card, &gpu); (void)gpu; if (result != OK) { free(card); return result; }
#define END(value) do { Return end_ = (value); free(card); return end_; } while (0)

/* ------------------------------------------------------------------------------------------------ the library itself */
Return nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  Card *card = read_card();
  Return result = card ? injected(card, "nvmlInit", "") : DRIVER_NOT_LOADED;
  if (card && !strcmp(card->driver, "none")) result = DRIVER_NOT_LOADED;
  if (result == OK) {
    pthread_mutex_lock(&lock);
    if (!users) generation = card->generation;
    users++;
    pthread_mutex_unlock(&lock);
  }
  free(card);
  return result;
}
Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Return nvmlShutdown(void) {
  pthread_mutex_lock(&lock);
  Return result = users ? OK : UNINITIALIZED;
  if (users) users--;
  pthread_mutex_unlock(&lock);
  return result;
}
const char *nvmlErrorString(Return result) { return result == OK ? "Success" : "an error of the stand-in"; }
Return nvmlSystemGetDriverVersion(char *text, unsigned length) { BEGIN(NULL) snprintf(text, length, "%s", card->driver); END(OK); }

/* ---------------------------------------------------------------------------------------------------------- devices */
Return nvmlDeviceGetCount_v2(unsigned *count) { BEGIN(NULL) *count = (unsigned)card->gpus; END(OK); }

static Handle *handle_of(const char *uuid) {
  Handle *found = NULL;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < known && !found; i++) if (!strcmp(handles[i].uuid, uuid)) found = &handles[i];
  if (!found && known < MAX_GPUS * 4) { found = &handles[known++]; strcpy(found->uuid, uuid); }
  pthread_mutex_unlock(&lock);
  return found;
}
Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **device) {
  BEGIN(NULL)
  if (index >= (unsigned)card->gpus) END(INVALID_ARGUMENT);
  *device = handle_of(card->gpu[index].uuid);
  END(injected(card, __func__, (*device)->uuid));
}
Return nvmlDeviceGetUUID(Handle *device, char *text, unsigned length) { BEGIN(device) snprintf(text, length, "%s", gpu->uuid); END(OK); }
Return nvmlDeviceGetName(Handle *device, char *text, unsigned length) { BEGIN(device) snprintf(text, length, "%s", gpu->name); END(OK); }
Return nvmlDeviceGetIndex(Handle *device, unsigned *index) { BEGIN(device) *index = (unsigned)(gpu - card->gpu); END(OK); }
static void write_pci(Pci *pci, const char *bus) {
  memset(pci, 0, sizeof *pci);
  snprintf(pci->bus_id, sizeof pci->bus_id, "%s", bus);
  snprintf(pci->legacy, sizeof pci->legacy, "%s", strlen(bus) > 12 ? bus + strlen(bus) - 12 : bus);
  sscanf(bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
}
Return nvmlDeviceGetPciInfo_v3(Handle *device, Pci *pci) { BEGIN(device) write_pci(pci, gpu->bus); END(OK); }
Return nvmlDeviceGetMigMode(Handle *device, unsigned *now, unsigned *pending) {
  BEGIN(device)
  if (gpu->mig < 0) END(NOT_SUPPORTED);
  *now = *pending = (unsigned)gpu->mig;
  END(OK);
}
/* As on the H200 this was modelled on: the NUMA node is known to /sys only. */
Return nvmlDeviceGetNumaNodeId(Handle *device, int *node) { BEGIN(device) *node = -1; END(NOT_SUPPORTED); }

/* ---------------------------------------------------------------------------------------------- memory and processes */
/* Real NVML lists nobody to a caller that sits in a PID namespace of its own. */
static int sees_processes(Card *card) {
  char own[64] = "";
  if (readlink("/proc/self/ns/pid", own, sizeof own - 1) < 0) return 1;
  for (int i = 0; i < card->lines; i++) if (names(&card->line[i], "pidns", 2)) return !strcmp(card->line[i].word[1], own);
  return 1;
}
static unsigned long long used_bytes(Card *card, Gpu *gpu) {
  unsigned long long used = gpu->base;
  for (int i = 0; i < card->lines; i++)
    if (names(&card->line[i], "process", 4) && !strcmp(card->line[i].word[1], gpu->uuid)) {
      Line *line = &card->line[i];
      used += strtoull(line->word[3][0] == '?' ? line->word[3] + 1 : line->word[3], NULL, 10);
    }
  return used;
}
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
Return nvmlDeviceGetMemoryInfo(Handle *device, Memory *memory) {
  BEGIN(device)
  memory->total = gpu->total; memory->used = gpu->reserved + used_bytes(card, gpu); memory->free = memory->total - memory->used;
  END(OK);
}
Return nvmlDeviceGetMemoryInfo_v2(Handle *device, Memory2 *memory) {
  BEGIN(device)
  memory->total = gpu->total; memory->reserved = gpu->reserved; memory->used = used_bytes(card, gpu);
  memory->free = memory->total - memory->reserved - memory->used;
  END(OK);
}
static Return processes(Card *card, Gpu *gpu, const char *kind, unsigned *count, Process *list) {
  unsigned found = 0, room = *count;
  for (int i = 0; i < card->lines && sees_processes(card); i++) {
    Line *line = &card->line[i];
    if (!names(line, "process", 4) || strcmp(line->word[1], gpu->uuid) || strcmp(line->words > 4 ? line->word[4] : "compute", kind)) continue;
    if (list && found < room) {
      unsigned long long used = line->word[3][0] == '?' ? ~0ULL : strtoull(line->word[3], NULL, 10);
      list[found] = (Process){(unsigned)atol(line->word[2]), used, ~0u, ~0u};
    }
    found++;
  }
  *count = found;
  return found > room || (found && !list) ? INSUFFICIENT_SIZE : OK;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(Handle *device, unsigned *count, Process *list) { BEGIN(device) END(processes(card, gpu, "compute", count, list)); }
Return nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle *device, unsigned *count, Process *list) { BEGIN(device) END(processes(card, gpu, "mps", count, list)); }
Return nvmlDeviceGetGraphicsRunningProcesses_v3(Handle *device, unsigned *count, Process *list) { BEGIN(device) END(processes(card, gpu, "graphics", count, list)); }

/* --------------------------------------------------------------------------------------------------- links and peers */
static Line *link_line(Card *card, Gpu *gpu, unsigned link) {
  for (int i = 0; i < card->lines; i++) {
    Line *line = &card->line[i];
    if (names(line, "link", 5) && !strcmp(line->word[1], gpu->uuid) && (unsigned)atoi(line->word[2]) == link) return line;
  }
  return NULL;
}
Return nvmlDeviceGetNvLinkState(Handle *device, unsigned link, unsigned *active) {
  BEGIN(device)
  if (gpu->links == 0) END(NOT_SUPPORTED);
  if (link >= (unsigned)gpu->links) END(INVALID_ARGUMENT);
  *active = link_line(card, gpu, link) != NULL;
  END(OK);
}
Return nvmlDeviceGetNvLinkRemotePciInfo_v2(Handle *device, unsigned link, Pci *pci) {
  BEGIN(device)
  Line *line = link_line(card, gpu, link);
  if (!line) END(INVALID_ARGUMENT);
  write_pci(pci, line->word[4]);
  END(OK);
}
Return nvmlDeviceGetNvLinkRemoteDeviceType(Handle *device, unsigned link, unsigned *type) {
  BEGIN(device)
  Line *line = link_line(card, gpu, link);
  if (!line) END(INVALID_ARGUMENT);
  *type = !strcmp(line->word[3], "gpu") ? 0 : !strcmp(line->word[3], "switch") ? 2 : 255;
  END(OK);
}
/* Index 2 asks for NVLink. Without a `p2p` line: yes where both have active links, else not supported. */
Return nvmlDeviceGetP2PStatus(Handle *device, Handle *other, int index, unsigned *status) {
  BEGIN(device)
  int linked[2] = {0, 0};
  for (int i = 0; i < card->lines; i++) {
    Line *line = &card->line[i];
    const char *a = device->uuid, *b = other->uuid;
    if (names(line, "p2p", 4) && ((!strcmp(line->word[1], a) && !strcmp(line->word[2], b)) || (!strcmp(line->word[1], b) && !strcmp(line->word[2], a)))) {
      *status = (unsigned)atoi(line->word[3]);
      END(OK);
    }
    if (names(line, "link", 5)) { linked[0] |= !strcmp(line->word[1], a); linked[1] |= !strcmp(line->word[1], b); }
  }
  *status = index != 2 || (linked[0] && linked[1]) ? 0 : 5;
  END(OK);
}
/* 30 (one host bridge) for every pair, NVLink or not: what an H200 pair joined by 18 links said. */
Return nvmlDeviceGetTopologyCommonAncestor(Handle *device, Handle *other, unsigned *level) { (void)other; BEGIN(device) *level = 30; END(OK); }

/* ------------------------------------------------------------------------------------------------------------ health */
static Line *about(Card *card, const char *kind, Gpu *gpu, int words) {
  for (int i = 0; i < card->lines; i++) if (names(&card->line[i], kind, words) && !strcmp(card->line[i].word[1], gpu->uuid)) return &card->line[i];
  return NULL;
}
Return nvmlDeviceGetRemappedRows(Handle *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  BEGIN(device)
  Line *line = about(card, "rows", gpu, 6);
  *corrected = line ? (unsigned)atoi(line->word[2]) : 0; *uncorrected = line ? (unsigned)atoi(line->word[3]) : 0;
  *pending = line ? (unsigned)atoi(line->word[4]) : 0; *failed = line ? (unsigned)atoi(line->word[5]) : 0;
  END(OK);
}
Return nvmlDeviceGetTotalEccErrors(Handle *device, unsigned type, unsigned counter, unsigned long long *count) {
  (void)counter;
  BEGIN(device)
  Line *line = about(card, "ecc", gpu, 4);
  *count = line ? strtoull(line->word[type == 0 ? 2 : 3], NULL, 10) : 0;
  END(OK);
}

/* ------------------------------------------------------------------------------------------------------------ events */
static int xid_lines(Card *card) { int n = 0; for (int i = 0; i < card->lines; i++) n += names(&card->line[i], "xid", 3); return n; }

Return nvmlEventSetCreate(EventSet **set) { BEGIN(NULL) *set = calloc(1, sizeof **set); (*set)->seen = xid_lines(card); END(OK); }
Return nvmlEventSetFree(EventSet *set) { free(set); return OK; }
Return nvmlDeviceGetSupportedEventTypes(Handle *device, unsigned long long *types) { BEGIN(device) *types = 0xff9f; END(OK); }
Return nvmlDeviceRegisterEvents(Handle *device, unsigned long long types, EventSet *set) {
  BEGIN(device)
  if ((types & 8) && set->uuids < MAX_GPUS) strcpy(set->uuid[set->uuids++], gpu->uuid);
  END(OK);
}
static int is_watched(EventSet *set, const char *uuid) {
  for (int i = 0; i < set->uuids; i++) if (!strcmp(set->uuid[i], uuid)) return 1;
  return 0;
}
/* The next `xid` line that was appended since the set was made; lines are never taken out while a set waits. */
Return nvmlEventSetWait_v2(EventSet *set, EventData *data, unsigned timeout) {
  for (unsigned waited = 0;; waited += 20) {
    BEGIN(NULL)
    int at = 0;
    for (int i = 0; i < card->lines; i++) {
      Line *line = &card->line[i];
      if (!names(line, "xid", 3) || at++ < set->seen) continue;
      set->seen++;
      if (!is_watched(set, line->word[1])) continue;
      *data = (EventData){handle_of(line->word[1]), 8, strtoull(line->word[2], NULL, 10), ~0u, ~0u};
      END(OK);
    }
    free(card);
    if (waited >= timeout) return TIMEOUT;
    usleep(20000);
  }
}
