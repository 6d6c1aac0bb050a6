/* trap.c -- an integer division that x86 refuses gets a result instead of ending the server.
 *
 * x86 traps on two integer divisions: by zero, and of the lowest integer by -1. Libraries guard against the first and forget the second: with one
 * int64 tensor of -9223372036854775808 and one of -1, ONNX Runtime's Div and Mod, torch.div(rounding_mode="trunc") and TorchScript's `//`
 * and `%` raise SIGFPE, and the server is gone. Whoever may set a tensor and run such a model could do that. Other processors do not trap.
 *
 * 1. Only threads other than the process's first: there a trap is a bug of the server, and its crash report is what we want.
 * 2. The result is that of a wrapping division: the dividend as quotient, 0 as remainder. The dividend already stands in RAX/EAX/AX/AL, so only the
 *    remainder's register is cleared and the instruction stepped over.
 * 3. Everything else goes to the handler that was there before. Nothing here allocates, locks or calls anything but gettid. */
#include "ai.h"

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef __x86_64__

static struct sigaction before;

/* Length of the `div` or `idiv` at p; 0 when it is another instruction. *bytes = 1 for the 8-bit form, else 2, 4 or 8. */
static size_t division_length(const unsigned char *p, int *bytes) {
    const unsigned char *start = p;
    *bytes = 4;
    for (;; p++) {
        if (*p == 0x66) *bytes = 2;
        else if (*p != 0x67 && *p != 0xF2 && *p != 0xF3 && *p != 0x2E && *p != 0x36 && *p != 0x3E && *p != 0x26 && *p != 0x64 && *p != 0x65) break;
        if (p - start >= 4) return 0;
    }
    if ((*p & 0xF0) == 0x40) {
        if (*p & 8) *bytes = 8;
        p++;
    }
    if (*p != 0xF6 && *p != 0xF7) return 0;
    if (*p++ == 0xF6) *bytes = 1;
    unsigned char modrm = *p++, mod = modrm >> 6, rm = modrm & 7;
    if (((modrm >> 3) & 7) < 6) return 0; /* /6 is div, /7 idiv */
    if (mod != 3 && rm == 4) {
        unsigned char base = *p++ & 7;
        if (mod == 0 && base == 5) p += 4;
    }
    if (mod == 0 && rm == 5) p += 4;
    if (mod == 1) p += 1;
    if (mod == 2) p += 4;
    return (size_t)(p - start);
}

static bool step_over(ucontext_t *at) {
    greg_t *regs = at->uc_mcontext.gregs;
    int bytes;
    size_t length = division_length((const unsigned char *)regs[REG_RIP], &bytes);
    if (!length) return false;
    regs[REG_RIP] += (greg_t)length;
    if (bytes == 1) regs[REG_RAX] &= ~0xFF00LL;
    else if (bytes == 2) regs[REG_RDX] &= ~0xFFFFLL;
    else regs[REG_RDX] = 0;
    return true;
}

static void on_fpe(int sig, siginfo_t *what, void *where) {
    bool division = what->si_code == FPE_INTDIV || what->si_code == FPE_INTOVF;
    if (division && syscall(SYS_gettid) != getpid() && step_over(where)) return;
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(sig, what, where);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(sig);
    else {
        signal(SIGFPE, SIG_DFL);
        raise(SIGFPE);
    }
}

void trap_install(void) {
    static bool installed; /* a second time, our own handler would stand behind itself */
    if (installed) return;
    installed = true;
    struct sigaction ours = { .sa_sigaction = on_fpe, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    sigemptyset(&ours.sa_mask);
    sigaction(SIGFPE, &ours, &before);
}

#else
void trap_install(void) {} /* other processors give a result by themselves */
#endif
