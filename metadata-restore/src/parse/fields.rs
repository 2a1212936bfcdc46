//! The attributes of a tag: numbers, each known by name and there at most once.

use std::borrow::Cow;

use quick_xml::events::BytesStart;

use super::shortened;
use crate::error::Fault;

/// The attributes of a tag, all of them known.
pub(super) struct Fields<'a> {
    element: &'static str,
    /// With what they say, if they are there.
    values: Vec<(&'static str, Option<Cow<'a, str>>)>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(
        element: &'static str,
        tag: &'a BytesStart<'_>,
        known: &[&'static str],
    ) -> Result<Self, Fault> {
        let mut values: Vec<_> = known.iter().map(|name| (*name, None)).collect();
        for attribute in tag.attributes() {
            let attribute =
                attribute.map_err(|cause| Fault::Syntax(shortened(&cause.to_string())))?;
            let name: &str = attribute.key.as_ref();
            let Some((_, value)) = values.iter_mut().find(|(known, _)| *known == name) else {
                let name = shortened(name);
                return Err(Fault::Attribute { element, name });
            };
            *value = Some(attribute.value);
        }
        Ok(Fields { element, values })
    }

    /// Forgets what an attribute says.
    pub(super) fn ignore(&mut self, name: &'static str) {
        self.values.retain(|(known, _)| *known != name);
    }

    /// A number, if it is there.
    pub(super) fn optional(&self, name: &'static str) -> Result<Option<u64>, Fault> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        // `parse` takes a sign, too.
        let number = text
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(text);
        match number.and_then(|digits| digits.parse().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, "a number below 2^64")),
        }
    }

    /// A number of at most `max`, which must be there.
    pub(super) fn number(&self, name: &'static str, max: u64) -> Result<u64, Fault> {
        let element = self.element;
        match self.optional(name)? {
            Some(number) if number <= max => Ok(number),
            Some(_) => Err(self.wrong(name, &format!("at most {max}"))),
            None => Err(Fault::Missing { element, name }),
        }
    }

    /// A number below `limit`, which must be there.
    pub(super) fn small(&self, name: &'static str, limit: u64) -> Result<u32, Fault> {
        let number = self.number(name, limit.saturating_sub(1))?;
        u32::try_from(number).map_err(|_| self.wrong(name, "a number of 32 bits"))
    }

    /// What is wrong with an attribute.
    pub(super) fn wrong(&self, name: &'static str, expected: &str) -> Fault {
        Fault::Number {
            name,
            found: shortened(self.text(name).unwrap_or_default()),
            expected: expected.to_owned(),
        }
    }

    fn text(&self, name: &'static str) -> Option<&str> {
        let (_, text) = self.values.iter().find(|(known, _)| *known == name)?;
        text.as_deref()
    }
}
