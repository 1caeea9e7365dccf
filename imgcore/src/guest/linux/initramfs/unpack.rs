//! The ways in which the kernel lets an initial RAM disk be packed (`lib/decompress.c`).

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Take};

/// What a packing is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Cpio,
    Gzip,
    Xz,
    Lzma,
    Zstd,
    Bzip2,
    Lz4,
    Lzo,
}

impl Packing {
    pub(super) fn name(self) -> &'static str {
        match self {
            Packing::Cpio => "none",
            Packing::Gzip => "gzip",
            Packing::Xz => "xz",
            Packing::Lzma => "lzma",
            Packing::Zstd => "zstd",
            Packing::Bzip2 => "bzip2",
            Packing::Lz4 => "lz4",
            Packing::Lzo => "lzo",
        }
    }
}

const MAGICS: &[(&[u8], Packing)] = &[
    (b"070701", Packing::Cpio),
    (b"070702", Packing::Cpio),
    (&[0x1f, 0x8b], Packing::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Xz),
    (&[0x5d, 0, 0], Packing::Lzma),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
    (b"BZh", Packing::Bzip2),
    (&[0x02, 0x21, 0x4c, 0x18], Packing::Lz4),
    (&[0x89, b'L', b'Z', b'O', 0, 0x0d], Packing::Lzo),
];

/// An archive, unpacked, of which no more than was allowed comes out.
pub(super) type Stream<'a> = BufReader<Take<Box<dyn Read + 'a>>>;

/// Bytes that tell how what comes next is packed.
pub(super) const MAGIC: usize = 6;

/// How what begins like this is packed.
pub(super) fn packing(head: &[u8; MAGIC]) -> Result<Packing> {
    let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
    found.map(|(_, p)| *p).ok_or_else(|| bad("an archive is packed in a way that is not known"))
}

/// Skips zeroes; `false` at the end.
pub(super) fn skip_zeroes(input: &mut dyn BufRead) -> Result<bool> {
    loop {
        let have = input.fill_buf()?;
        if have.is_empty() {
            return Ok(false);
        }
        let zeroes = have.iter().take_while(|b| **b == 0).count();
        let more = zeroes == have.len();
        input.consume(zeroes);
        if !more {
            return Ok(true);
        }
    }
}

/// Hands the unpacked bytes to `each`; `left` bounds them over all archives. Behind it, the input stands
/// after the packed bytes.
pub(super) fn unpacked(
    packing: Packing,
    input: &mut dyn BufRead,
    left: &mut u64,
    each: &mut dyn FnMut(&mut Stream<'_>) -> Result<()>,
) -> Result<()> {
    let source: Box<dyn Read + '_> = match packing {
        Packing::Cpio => Box::new(input),
        Packing::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
        Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new(input)),
        Packing::Lzma => {
            let stream =
                liblzma::stream::Stream::new_lzma_decoder(256 << 20).map_err(Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        Packing::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(input)),
        Packing::Lz4 => Box::new(Blocks::new(Lz4 { input })),
        Packing::Lzo => Box::new(Blocks::new(Lzo::new(input)?)),
    };
    let mut stream = BufReader::with_capacity(64 << 10, source.take(*left));
    let result = each(&mut stream);
    // To the end of the packed bytes, where the next archive begins.
    let rest = result.and_then(|()| std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ()));
    *left = stream.get_ref().limit();
    if *left == 0 {
        return Err(bad("it unpacks to more than 2 GiB"));
    }
    rest
}

/// A packing that works on blocks.
trait Block {
    /// The next block, unpacked; `None` at the end.
    fn next(&mut self) -> Result<Option<Vec<u8>>>;
}

struct Blocks<B> {
    from: B,
    block: Vec<u8>,
    at: usize,
}

impl<B: Block> Blocks<B> {
    fn new(from: B) -> Self {
        Blocks { from, block: Vec::new(), at: 0 }
    }
}

impl<B: Block> Read for Blocks<B> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.at == self.block.len() {
            match self.from.next()? {
                None => return Ok(0),
                Some(block) => (self.block, self.at) = (block, 0),
            }
        }
        let n = buf.len().min(self.block.len() - self.at);
        buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Largest block of either.
const MAX_BLOCK: usize = 8 << 20;

/// LZ4's legacy frame, the one the kernel knows: blocks with their lengths before them.
struct Lz4<'a> {
    input: &'a mut dyn BufRead,
}

impl Block for Lz4<'_> {
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let mut len = [0; 4];
            self.input.read_exact(&mut len)?;
            let len = u32::from_le_bytes(len);
            match len {
                0 => return Ok(None),
                // The frame's magic number, also of a further frame.
                0x184c_2102 => continue,
                _ => {}
            }
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len > MAX_BLOCK + MAX_BLOCK / 255 + 16 {
                return Err(bad("a block of LZ4 is too long"));
            }
            let mut packed = vec![0; len];
            self.input.read_exact(&mut packed)?;
            let mut block = vec![0; MAX_BLOCK];
            let n = lz4_flex::block::decompress_into(&packed, &mut block)
                .map_err(|_| bad("a block of LZ4 is damaged"))?;
            block.truncate(n);
            return Ok(Some(block));
        }
    }
}

/// The file format of `lzop`.
struct Lzo<'a> {
    input: &'a mut dyn BufRead,
    flags: u32,
}

impl<'a> Lzo<'a> {
    fn new(input: &'a mut dyn BufRead) -> Result<Self> {
        let mut lzo = Lzo { input, flags: 0 };
        lzo.bytes::<9>()?;
        let version = u16::from_be_bytes(lzo.bytes()?);
        lzo.bytes::<2>()?;
        if version >= 0x940 {
            lzo.bytes::<2>()?;
        }
        lzo.bytes::<1>()?;
        if version >= 0x940 {
            lzo.bytes::<1>()?;
        }
        lzo.flags = u32::from_be_bytes(lzo.bytes()?);
        if lzo.flags & 0x800 != 0 {
            lzo.bytes::<4>()?;
        }
        // Mode and time, whose upper half came later.
        lzo.bytes::<8>()?;
        if version >= 0x940 {
            lzo.bytes::<4>()?;
        }
        let [name] = lzo.bytes()?;
        for _ in 0..name {
            lzo.bytes::<1>()?;
        }
        lzo.bytes::<4>()?;
        Ok(lzo)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut raw = [0; N];
        self.input.read_exact(&mut raw)?;
        Ok(raw)
    }
}

impl Block for Lzo<'_> {
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut number =
            || self.bytes().map(|b| usize::try_from(u32::from_be_bytes(b)).unwrap_or(usize::MAX));
        let len = number()?;
        if len == 0 {
            return Ok(None);
        }
        let packed_len = number()?;
        if len > MAX_BLOCK || packed_len > len {
            return Err(bad("a block of LZO is too long"));
        }
        // Adler-32 and CRC-32 of the data, then of the packed ones, which are left out where nothing was
        // packed. Damage shows itself: the archive inside has its own structure.
        let mut sums = (self.flags & 1) + ((self.flags >> 8) & 1);
        if packed_len < len {
            sums += ((self.flags >> 1) & 1) + ((self.flags >> 9) & 1);
        }
        for _ in 0..sums {
            self.bytes::<4>()?;
        }
        let mut packed = vec![0; packed_len];
        self.input.read_exact(&mut packed)?;
        if packed_len == len {
            return Ok(Some(packed));
        }
        let mut block = vec![0; len];
        match lzokay::decompress::decompress(&packed, &mut block) {
            Ok(n) if n == len => Ok(Some(block)),
            _ => Err(bad("a block of LZO is damaged")),
        }
    }
}

fn bad(text: &str) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}
