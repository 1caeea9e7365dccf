/* A guest of our own, for hosts whose KVM cannot run an unmodified kernel: it finds the virtio disk on the PCI bus, reads
 * it through the device's rings, and says on the serial port what is there. 32-bit code without paging; it is started by
 * the PVH entry (Xen's public/arch-x86/hvm/start_info.h) and uses the device's legacy registers (VIRTIO 1.2, 4.1.4.8).
 * Built and run by testdata/tour. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* ELF note Xen/18: where the machine starts, in protected mode. */
__asm__(".pushsection .note.Xen, \"a\", @note\n"
        ".long 4, 4, 18\n.asciz \"Xen\"\n.long start\n"
        ".popsection\n"
        ".globl start\nstart: mov $stack + 16384, %esp\n call look\n1: hlt\n jmp 1b\n");

u8 stack[16384] __attribute__((aligned(16)));
/* The queue: descriptors, available ring, used ring on the next page; up to 1024 entries. */
u8 queue[65536] __attribute__((aligned(4096)));
static u8 data[4096] __attribute__((aligned(4096)));
static struct { u32 type, reserved; u64 sector; } request;
static volatile u8 status;

static void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static void outw(u16 port, u16 v) { __asm__ volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static void outl(u16 port, u32 v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static void say(const char *text) {
    while (*text) {
        while (!(inb(0x3fd) & 0x20)) {}
        outb(0x3f8, (u8)*text++);
    }
}

static void number(u32 n) {
    char text[11], *at = text + 10;
    *at = 0;
    do *--at = (char)('0' + n % 10); while (n /= 10);
    say(at);
}

static void hex(u8 n) {
    char text[3] = {"0123456789abcdef"[n >> 4], "0123456789abcdef"[n & 15], 0};
    say(text);
}

static u32 at32(const u8 *p) { return p[0] | p[1] << 8 | p[2] << 16 | (u32)p[3] << 24; }

static void end(void) { /* The keyboard controller's reset line; rkvm runs with -no-reboot. */
    outb(0x64, 0xfe);
    for (;;) __asm__ volatile("hlt");
}

static void stop(const char *why) { say(why); say("\r\n"); end(); }

/* Configuration space of bus 0 through the ports 0xcf8 and 0xcfc. */
static void pci(u32 slot, u32 reg) { outl(0xcf8, 0x80000000u | slot << 11 | reg); }

static u16 base, entries;

static void find(void) {
    u32 slot;
    for (slot = 1; slot < 32; slot++) {
        pci(slot, 0);
        if (inl(0xcfc) == 0x10011af4) break;
    }
    if (slot == 32) stop("no virtio disk on the PCI bus");
    pci(slot, 0x10);
    if (!(inl(0xcfc) & 0xfffc)) outl(0xcfc, 0xc000);
    base = (u16)(inl(0xcfc) & 0xfffc);
    pci(slot, 4);
    outl(0xcfc, 5); /* ports, bus master */
    say("virtio disk in PCI slot "); number(slot);
    outb(base + 18, 0);
    outb(base + 18, 1 | 2); /* ACKNOWLEDGE, DRIVER */
    outl(base + 4, 0);      /* no features */
    outw(base + 14, 0);
    entries = inw(base + 12);
    if (entries == 0 || entries > 1024) stop(": no usable queue");
    outl(base + 8, (u32)queue >> 12);
    outb(base + 18, 1 | 2 | 4); /* DRIVER_OK */
    say(", "); number(inl(base + 20)); say(" sectors of 512 bytes\r\n");
}

static void put(u32 index, void *address, u32 len, u16 flags, u16 next) {
    u8 *d = queue + 16 * index;
    *(u64 *)d = (u32)address;
    *(u32 *)(d + 8) = len;
    *(u16 *)(d + 12) = flags;
    *(u16 *)(d + 14) = next;
}

/* Eight sectors into `data`. */
static void read_at(u32 sector) {
    volatile u16 *avail = (volatile u16 *)(queue + 16 * entries);
    u32 used_at = (16u * entries + 6 + 2u * entries + 4095) & ~4095u;
    volatile u16 *used = (volatile u16 *)(queue + used_at);
    u16 done = used[1];
    request.type = 0;
    request.sector = sector;
    status = 0xff;
    put(0, &request, 16, 1, 1);
    put(1, data, 4096, 1 | 2, 2);
    put(2, (void *)&status, 1, 2, 0);
    avail[2 + avail[1] % entries] = 0;
    __asm__ volatile("" ::: "memory");
    avail[1]++;
    outw(base + 16, 0);
    while (used[1] == done) __asm__ volatile("pause");
    if (status) stop("the disk could not be read");
}

/* Which file system begins at a sector, if it is a known one. */
static const char *file_system(u32 sector) {
    read_at(sector);
    if (data[1080] == 0x53 && data[1081] == 0xef) return "ext2, ext3 or ext4";
    if (at32(data) == 0x42534658) return "XFS";
    if (at32(data + 3) == 0x5346544e) return "NTFS";
    if (at32(data + 54) == 0x31544146 || at32(data + 82) == 0x33544146) return "FAT";
    if (at32(data + 1024) == 0x4244 || (data[1024] == 'H' && (data[1025] == '+' || data[1025] == 'X'))) return "HFS+";
    return 0;
}

void look(void) {
    u8 table[64];
    u32 i, shown = 0;
    const char *known;
    say("a guest of our own is running on KVM\r\n");
    find();
    known = file_system(0);
    say("its first bytes: ");
    for (i = 0; i < 16; i++) { hex(data[i]); say(" "); }
    say("\r\n");
    if (known) { say("file system on the whole disk: "); say(known); say("\r\n"); }
    if (data[510] == 0x55 && data[511] == 0xaa) {
        for (i = 0; i < 64; i++) table[i] = data[446 + i];
        for (i = 0; i < 4; i++) {
            const u8 *p = table + 16 * i;
            if (!p[4] || !at32(p + 12)) continue;
            shown++;
            say("partition "); number(i + 1); say(": type "); hex(p[4]);
            say(", from sector "); number(at32(p + 8)); say(", "); number(at32(p + 12)); say(" sectors");
            known = file_system(at32(p + 8));
            if (known) { say(", "); say(known); }
            say("\r\n");
        }
    }
    if (!shown && !known) say("no partition table, and no file system that this guest knows\r\n");
    say("done\r\n");
    end();
}
