// SPDX-License-Identifier: Apache-2.0
//! The version of a resource, as small as it can be: it is kept for every workload of the mesh.

use std::fmt;

/// An opaque text that is given back as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Sixteen digits of lower-case hexadecimal: what istiod sends.
    Hash(u64),
    /// Anything else. Boxed twice, because it is rare and the other form is small.
    Text(Box<Box<str>>),
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        let hash = u64::from_str_radix(&text, 16).ok().filter(|hash| format!("{hash:016x}") == text);
        Self(hash.map_or_else(|| Form::Text(Box::new(text.into())), Form::Hash))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Hash(hash) => write!(f, "{hash:016x}"),
            Form::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_given_back_as_it_came() {
        for text in
            ["", "0123456789abcdef", "0123456789ABCDEF", "+123456789abcdef", "1", "v1/2", "0000000000000000"]
        {
            assert_eq!(Version::from(text.to_owned()).to_string(), text);
        }
        assert_eq!(size_of::<Version>(), 16);
    }
}
