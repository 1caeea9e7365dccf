//! Expressions: `1 + 2 * (0x10 & $eax)`.
//!
//! Sums are made of bit operations, these of products, these of signed numbers: the order that QEMU's
//! monitor has. Arithmetic is that of 64-bit two's complement.

/// Deepest nesting of parentheses and signs.
const DEPTH: usize = 64;

/// Reads an expression at the beginning of a text.
pub struct Expr<'a> {
    rest: &'a str,
    /// Looks a register up, by its name without `$`.
    register: &'a mut dyn FnMut(&str) -> Option<u64>,
    depth: usize,
}

/// Reads the expression at the beginning of `text`; returns its value and what follows.
///
/// # Errors
/// A sentence for people.
pub fn parse<'a>(
    text: &'a str,
    register: &'a mut dyn FnMut(&str) -> Option<u64>,
) -> Result<(i64, &'a str), String> {
    let mut e = Expr { rest: text.trim_start(), register, depth: 0 };
    let value = e.sum()?;
    Ok((value, e.rest))
}

impl Expr<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn skip(&mut self, c: char) {
        self.rest = self.rest[c.len_utf8()..].trim_start();
    }

    fn sum(&mut self) -> Result<i64, String> {
        let mut value = self.logic()?;
        while let Some(op @ ('+' | '-')) = self.peek() {
            self.skip(op);
            let other = self.logic()?;
            value = if op == '+' { value.wrapping_add(other) } else { value.wrapping_sub(other) };
        }
        Ok(value)
    }

    fn logic(&mut self) -> Result<i64, String> {
        let mut value = self.product()?;
        while let Some(op @ ('&' | '|' | '^')) = self.peek() {
            self.skip(op);
            let other = self.product()?;
            value = match op {
                '&' => value & other,
                '|' => value | other,
                _ => value ^ other,
            };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<i64, String> {
        let mut value = self.unary()?;
        while let Some(op @ ('*' | '/' | '%')) = self.peek() {
            self.skip(op);
            let other = self.unary()?;
            value = match op {
                '*' => value.wrapping_mul(other),
                _ if other == 0 => return Err("division by zero".into()),
                '/' => value.wrapping_div(other),
                _ => value.wrapping_rem(other),
            };
        }
        Ok(value)
    }

    fn unary(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("expression is nested too deeply".into());
        }
        let value = match self.peek() {
            None => Err("unexpected end of expression".into()),
            Some('+') => {
                self.skip('+');
                self.unary()
            }
            Some('-') => {
                self.skip('-');
                self.unary().map(i64::wrapping_neg)
            }
            Some('~') => {
                self.skip('~');
                self.unary().map(|v| !v)
            }
            Some('(') => {
                self.skip('(');
                let value = self.sum()?;
                if self.peek() != Some(')') {
                    return Err("')' expected".into());
                }
                self.skip(')');
                Ok(value)
            }
            Some('\'') => self.character(),
            Some('$') => self.named(),
            Some(c) if c.is_ascii_digit() => self.number(),
            Some(c) => Err(format!("invalid char '{c}' in expression")),
        };
        self.depth -= 1;
        value
    }

    fn character(&mut self) -> Result<i64, String> {
        let mut chars = self.rest[1..].chars();
        let c = chars.next().ok_or("character constant expected")?;
        if chars.next() != Some('\'') {
            return Err("missing terminating ' character".into());
        }
        self.rest = chars.as_str().trim_start();
        Ok(i64::from(u32::from(c)))
    }

    fn named(&mut self) -> Result<i64, String> {
        let text = &self.rest[1..];
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.'))
            .unwrap_or(text.len());
        let value = (self.register)(&text[..end]).ok_or("unknown register")?;
        self.rest = text[end..].trim_start();
        Ok(value.cast_signed())
    }

    fn number(&mut self) -> Result<i64, String> {
        let (radix, digits) = match self.rest.strip_prefix("0x").or(self.rest.strip_prefix("0X")) {
            Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, hex),
            _ if self.rest.starts_with('0') => (8, self.rest),
            _ => (10, self.rest),
        };
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        let value = u64::from_str_radix(&digits[..end], radix).map_err(|_| "number too large")?;
        self.rest = digits[end..].trim_start();
        Ok(value.cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(text: &str) -> Result<(i64, String), String> {
        let mut registers = |name: &str| (name == "eax").then_some(0x55);
        parse(text, &mut registers).map(|(v, rest)| (v, rest.to_owned()))
    }

    #[test]
    fn arithmetic() {
        for (text, value) in [
            ("1+2*3", 7),
            ("(1+2)*3", 9),
            ("0x10", 16),
            ("010", 8),
            ("0", 0),
            ("-1", -1),
            ("~0", -1),
            ("1 + 2 & 3", 3),
            ("'A'", 65),
            ("$eax & 0xf", 5),
            ("7 % 4 - 10 / 3", 0),
            ("0xffffffffffffffff", -1),
            ("0x8000000000000000 / -1", i64::MIN),
        ] {
            assert_eq!(eval(text), Ok((value, String::new())), "{text}");
        }
        assert_eq!(eval("5 6"), Ok((5, "6".into())));
        assert_eq!(eval("0x"), Ok((0, "x".into())));
    }

    #[test]
    fn errors() {
        for (text, error) in [
            ("", "unexpected end of expression"),
            ("(1", "')' expected"),
            ("foo", "invalid char 'f' in expression"),
            ("1/0", "division by zero"),
            ("1%0", "division by zero"),
            ("$foo", "unknown register"),
            ("'A", "missing terminating ' character"),
            ("99999999999999999999", "number too large"),
        ] {
            assert_eq!(eval(text), Err(error.into()), "{text}");
        }
        assert!(eval(&"(".repeat(4000)).is_err() && eval(&"-".repeat(4000)).is_err());
    }
}
