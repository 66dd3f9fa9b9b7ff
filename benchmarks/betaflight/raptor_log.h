/* Every call of the loop as a record in a file, for the program that flies the drone.
   Only where the variable RAPTOR_LOG names that file; a flight controller has no need of it. */
#ifndef RAPTOR_LOG_H
#define RAPTOR_LOG_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    double real;           /* s, the computer's monotonic clock */
    uint32_t now;          /* us, the firmware's clock */
    uint32_t said;         /* of raptor_loop_step */
    float seen[13];        /* position, orientation, velocity, rates */
    float action[4];
} raptorRecord_t;

static FILE *raptorLogFile;

static void raptorLogFlush(void)
{
    if (raptorLogFile) fflush(raptorLogFile);
}

static void raptorLog(uint32_t now, int said, const raptor_seen *seen, const float *action)
{
    static int tried;
    if (!tried) {
        const char *path = getenv("RAPTOR_LOG");
        raptorLogFile = path ? fopen(path, "wb") : NULL;
        if (raptorLogFile) setvbuf(raptorLogFile, NULL, _IOFBF, 1 << 20);
        tried = 1;
    }
    if (!raptorLogFile) return;
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    raptorRecord_t record;
    record.real = clock.tv_sec + 1e-9 * clock.tv_nsec;
    record.now = now;
    record.said = said;
    memcpy(record.seen, seen, sizeof(record.seen));
    memcpy(record.action, action, sizeof(record.action));
    fwrite(&record, sizeof(record), 1, raptorLogFile);
}

#endif
