//! A small, safe part of Markdown: paragraphs, emphasis, code, lists and links. HTML in it is text.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Markdown as HTML that a page can hold.
pub(super) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    // What closes each of the tags that are open.
    let mut open: Vec<&'static str> = Vec::new();
    for event in Parser::new_ext(text, Options::ENABLE_STRIKETHROUGH) {
        match event {
            Event::Start(tag) => open.push(start(&tag, &mut out)),
            Event::End(end) => {
                out.push_str(open.pop().unwrap_or_default());
                if end == TagEnd::Image {
                    out.push(')');
                }
            }
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => {
                escape(&text, &mut out);
            }
            Event::Code(code) => {
                out.push_str("<code>");
                escape(&code, &mut out);
                out.push_str("</code>");
            }
            Event::SoftBreak => out.push('\n'),
            Event::HardBreak => out.push_str("<br>"),
            Event::Rule => out.push_str("<hr>"),
            _ => {}
        }
    }
    for close in open.iter().rev() {
        out.push_str(close);
    }
    out
}

/// Writes what begins a tag, and gives what ends it.
fn start(tag: &Tag<'_>, out: &mut String) -> &'static str {
    let (begin, end) = match tag {
        Tag::Paragraph => ("<p>", "</p>"),
        Tag::Heading { .. } => ("<p><strong>", "</strong></p>"),
        Tag::Emphasis => ("<em>", "</em>"),
        Tag::Strong => ("<strong>", "</strong>"),
        Tag::Strikethrough => ("<s>", "</s>"),
        Tag::CodeBlock(_) => ("<pre><code>", "</code></pre>"),
        Tag::List(None) => ("<ul>", "</ul>"),
        Tag::List(Some(_)) => ("<ol>", "</ol>"),
        Tag::Item => ("<li>", "</li>"),
        Tag::BlockQuote(_) => ("<blockquote>", "</blockquote>"),
        Tag::Link { dest_url, .. } if is_safe(dest_url) => {
            out.push_str("<a target=\"_blank\" rel=\"noopener noreferrer\" href=\"");
            escape(dest_url, out);
            ("\">", "</a>")
        }
        // The words that stand for it.
        Tag::Image { .. } => ("(", ""),
        _ => ("", ""),
    };
    out.push_str(begin);
    end
}

/// Links that lead to another page, and run nothing.
fn is_safe(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https" | "mailto"))
}

fn escape(text: &str, out: &mut String) {
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markdown_becomes_plain_tags() {
        for (text, expected) in [
            (
                "*the* **site**",
                "<p><em>the</em> <strong>site</strong></p>",
            ),
            (
                "# Title\n\n- `a<b`\n- c",
                "<p><strong>Title</strong></p><ul><li><code>a&lt;b</code></li><li>c</li></ul>",
            ),
            (
                "[docs](https://example.com/?a=1&b=2 \"x\")",
                "<p><a target=\"_blank\" rel=\"noopener noreferrer\" \
                 href=\"https://example.com/?a=1&amp;b=2\">docs</a></p>",
            ),
            ("1. one", "<ol><li>one</li></ol>"),
            ("![logo](https://example.com/x.png)", "<p>(logo)</p>"),
        ] {
            assert_eq!(html(text), expected, "{text}");
        }
    }

    #[test]
    fn nothing_in_it_runs() {
        for text in [
            "<script>alert(1)</script>",
            "a <img src=x onerror=alert(1)> b",
            "[x](javascript:alert(1))",
            "[x](JaVaScRiPt:alert(1))",
            "[x](data:text/html,<script>)",
            "<javascript:alert(1)>",
            "[x](vbscript:x) ![x](javascript:alert(1))",
            "[x](/logout)",
        ] {
            let html = html(text);
            assert!(
                !html.contains("<script") && !html.contains("<img"),
                "{html}"
            );
            assert!(!html.contains("href"), "{html}");
        }
        let quoted = html("[x](https://e.test/\"onclick=alert(1))");
        assert!(!quoted.contains("\"onclick"), "{quoted}");
    }

    proptest! {
        /// Whatever is written, only tags of this file come out, and each is closed.
        #[test]
        fn every_tag_is_known_and_closed(text in "[-a-z <>\"'&*_`#\\[\\]()!:/.0-9\n~]{0,80}") {
            let html = html(&text);
            let mut open = Vec::new();
            for part in html.split('<').skip(1) {
                let (tag, _) = part.split_once('>').unwrap();
                match tag.strip_prefix('/') {
                    Some(name) => prop_assert_eq!(open.pop(), Some(name), "{}", html),
                    None => {
                        let name = tag.split(' ').next().unwrap();
                        let known = [
                            "p", "strong", "em", "s", "code", "pre", "ul", "ol", "li", "a",
                            "blockquote", "br", "hr",
                        ];
                        prop_assert!(known.contains(&name), "{}", html);
                        if name != "br" && name != "hr" {
                            open.push(name);
                        }
                    }
                }
            }
            prop_assert!(open.is_empty(), "{}", html);
        }
    }
}
