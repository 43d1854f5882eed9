/* SPDX-License-Identifier: MIT */
/* A logger that says nothing: the Xen libraries print to stderr unless they are given one. */
#ifndef XENPY_QUIET_H
#define XENPY_QUIET_H

#include <xentoollog.h>

static inline void xenpy_quiet_message(struct xentoollog_logger *logger, xentoollog_level level,
                                       int errnoval, const char *context, const char *format,
                                       va_list arguments)
{
    (void)logger, (void)level, (void)errnoval, (void)context, (void)format, (void)arguments;
}

static inline struct xentoollog_logger *xenpy_quiet_logger(void)
{
    static struct xentoollog_logger quiet = { .vmessage = xenpy_quiet_message };

    return &quiet;
}

#endif /* XENPY_QUIET_H */
