//! Codecs of packed blocks, each bounded by the room for its result.

use std::cell::RefCell;
use std::io::Read;

use libdeflater::Decompressor;

/// How a block is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// RFC 1950.
    Zlib,
    /// bzip2.
    Bzip2,
    /// Apple's LZFSE (and LZVN, which it contains).
    Lzfse,
    /// xz or the older lzma container.
    Xz,
    /// Apple Data Compression.
    Adc,
}

impl Codec {
    /// The name to show.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Zlib => "zlib",
            Codec::Bzip2 => "bzip2",
            Codec::Lzfse => "lzfse",
            Codec::Xz => "lzma",
            Codec::Adc => "adc",
        }
    }

    /// Unpacks `from` into `to`, which it must fill.
    ///
    /// # Errors
    /// A few words: the data are damaged, too short, or longer than `to`.
    pub fn unpack(self, from: &[u8], to: &mut [u8]) -> Result<(), String> {
        let have = match self {
            Codec::Zlib => zlib(from, to)?,
            Codec::Bzip2 => fill(bzip2::read::BzDecoder::new(from), to)?,
            Codec::Xz => fill(xz(from)?, to)?,
            Codec::Lzfse => lzfse(from, to)?,
            Codec::Adc => adc(from, to)?,
        };
        if have == to.len() {
            Ok(())
        } else {
            Err(format!("{have} bytes of data where {} are expected", to.len()))
        }
    }
}

const TOO_MUCH: &str = "more data than the block has room for";

fn zlib(from: &[u8], to: &mut [u8]) -> Result<usize, String> {
    thread_local! {
        static INFLATE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    }
    INFLATE.with_borrow_mut(|z| z.zlib_decompress(from, to)).map_err(|e| match e {
        libdeflater::DecompressionError::InsufficientSpace => TOO_MUCH.to_owned(),
        libdeflater::DecompressionError::BadData => {
            "not zlib data, or the checksum is wrong".to_owned()
        }
    })
}

/// Memory that a stream's own header may ask for: four times the largest block.
const XZ_MEMORY: u64 = 256 << 20;

fn xz(from: &[u8]) -> Result<liblzma::read::XzDecoder<&[u8]>, String> {
    let stream = liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY, 0)
        .map_err(|e| format!("lzma cannot begin: {e}"))?;
    Ok(liblzma::read::XzDecoder::new_stream(from, stream))
}

/// Reads until `to` is full; more than that is an error.
fn fill(mut stream: impl Read, to: &mut [u8]) -> Result<usize, String> {
    let mut have = 0;
    while have < to.len() {
        match stream.read(&mut to[have..]) {
            Ok(0) => return Ok(have),
            Ok(n) => have += n,
            Err(e) => return Err(e.to_string()),
        }
    }
    match stream.read(&mut [0]) {
        Ok(0) => Ok(have),
        Ok(_) => Err(TOO_MUCH.to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

fn lzfse(from: &[u8], to: &mut [u8]) -> Result<usize, String> {
    let mut decoder = lzfse_rust::LzfseRingDecoder::default();
    fill(decoder.reader_bytes(from), to)
}

/// Apple Data Compression: literals of up to 128 bytes, and copies of up to 18 bytes from the last
/// 1 KiB or of up to 67 bytes from the last 64 KiB.
fn adc(from: &[u8], to: &mut [u8]) -> Result<usize, String> {
    let short = || "the data end in the middle".to_owned();
    let (mut at, mut have) = (0, 0);
    while at < from.len() && have < to.len() {
        let first = usize::from(from[at]);
        if first & 0x80 != 0 {
            let len = (first & 0x7f) + 1;
            let bytes = from.get(at + 1..at + 1 + len).ok_or_else(short)?;
            to.get_mut(have..have + len).ok_or(TOO_MUCH)?.copy_from_slice(bytes);
            (at, have) = (at + 1 + len, have + len);
            continue;
        }
        let second = usize::from(*from.get(at + 1).ok_or_else(short)?);
        let (len, back, used) = if first & 0x40 != 0 {
            let third = usize::from(*from.get(at + 2).ok_or_else(short)?);
            ((first & 0x3f) + 4, second << 8 | third, 3)
        } else {
            ((first >> 2 & 0xf) + 3, (first & 3) << 8 | second, 2)
        };
        let mut source =
            have.checked_sub(back + 1).ok_or("a copy from before the beginning of the block")?;
        if have + len > to.len() {
            return Err(TOO_MUCH.to_owned());
        }
        // Byte by byte: the source may reach into what is being written.
        for _ in 0..len {
            to[have] = to[source];
            (have, source) = (have + 1, source + 1);
        }
        at += used;
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adc_copies_and_literals() {
        let mut out = [0; 12];
        // "abc", then 9 bytes from 3 back.
        Codec::Adc.unpack(&[0x82, b'a', b'b', b'c', 6 << 2, 2], &mut out).unwrap();
        assert_eq!(&out, b"abcabcabcabc");
        // The same with a far copy.
        Codec::Adc.unpack(&[0x82, b'a', b'b', b'c', 0x40 | 5, 0, 2], &mut out).unwrap();
        assert_eq!(&out, b"abcabcabcabc");
        for bad in [&[0x85, 1][..], &[0x80, 1, 4, 9], &[0x40, 1], &[0x80, 1, 63 << 2, 0]] {
            assert!(Codec::Adc.unpack(bad, &mut out).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn damage_is_told() {
        let mut out = [0; 64];
        for codec in [Codec::Zlib, Codec::Bzip2, Codec::Lzfse, Codec::Xz, Codec::Adc] {
            for bytes in [&[][..], &[0x12, 0x34], &[0xff; 40]] {
                assert!(codec.unpack(bytes, &mut out).is_err(), "{codec:?} {bytes:?}");
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_room() {
        let mut z = libdeflater::Compressor::new(libdeflater::CompressionLvl::best());
        let zeroes = vec![0; 1 << 20];
        let mut packed = vec![0; 1 << 16];
        let n = z.zlib_compress(&zeroes, &mut packed).unwrap();
        let e = Codec::Zlib.unpack(&packed[..n], &mut [0; 512]).unwrap_err();
        assert_eq!(e, TOO_MUCH);
    }
}
