//! What RFC 8439 gives as examples.

/// The block of §2.3.2.
pub(super) const BLOCK: [u8; 64] = [
    0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15, 0x50, 0x0f, 0xdd, 0x1f, 0xa3, 0x20, 0x71, 0xc4,
    0xc7, 0xd1, 0xf4, 0xc7, 0x33, 0xc0, 0x68, 0x03, 0x04, 0x22, 0xaa, 0x9a, 0xc3, 0xd4, 0x6c, 0x4e,
    0xd2, 0x82, 0x64, 0x46, 0x07, 0x9f, 0xaa, 0x09, 0x14, 0xc2, 0xd7, 0x05, 0xd9, 0x8b, 0x02, 0xa2,
    0xb5, 0x12, 0x9c, 0xd1, 0xde, 0x16, 0x4e, 0xb9, 0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e,
];

/// The plaintext of §2.4.2.
pub(super) const SUNSCREEN: &[u8; 114] = b"Ladies and Gentlemen of the class of '99: \
    If I could offer you only one tip for the future, sunscreen would be it.";

/// Its ciphertext.
pub(super) const SUNSCREEN_SEALED: [u8; 114] = [
    0x6e, 0x2e, 0x35, 0x9a, 0x25, 0x68, 0xf9, 0x80, 0x41, 0xba, 0x07, 0x28, 0xdd, 0x0d, 0x69, 0x81,
    0xe9, 0x7e, 0x7a, 0xec, 0x1d, 0x43, 0x60, 0xc2, 0x0a, 0x27, 0xaf, 0xcc, 0xfd, 0x9f, 0xae, 0x0b,
    0xf9, 0x1b, 0x65, 0xc5, 0x52, 0x47, 0x33, 0xab, 0x8f, 0x59, 0x3d, 0xab, 0xcd, 0x62, 0xb3, 0x57,
    0x16, 0x39, 0xd6, 0x24, 0xe6, 0x51, 0x52, 0xab, 0x8f, 0x53, 0x0c, 0x35, 0x9f, 0x08, 0x61, 0xd8,
    0x07, 0xca, 0x0d, 0xbf, 0x50, 0x0d, 0x6a, 0x61, 0x56, 0xa3, 0x8e, 0x08, 0x8a, 0x22, 0xb6, 0x5e,
    0x52, 0xbc, 0x51, 0x4d, 0x16, 0xcc, 0xf8, 0x06, 0x81, 0x8c, 0xe9, 0x1a, 0xb7, 0x79, 0x37, 0x36,
    0x5a, 0xf9, 0x0b, 0xbf, 0x74, 0xa3, 0x5b, 0xe6, 0xb4, 0x0b, 0x8e, 0xed, 0xf2, 0x78, 0x5e, 0x42,
    0x87, 0x4d,
];

const CONTRIBUTION: &[u8] = b"Any submission to the IETF intended by the Contributor for \
    publication as all or part of an IETF Internet-Draft or RFC and any statement made within the \
    context of an IETF activity is considered an \"IETF Contribution\". Such statements include \
    oral statements in IETF sessions, as well as written and electronic communications made at any \
    time or place, which are addressed to";

const JABBERWOCKY: &[u8] = b"'Twas brillig, and the slithy toves\nDid gyre and gimble in the \
    wabe:\nAll mimsy were the borogoves,\nAnd the mome raths outgrabe.";

type Half = [u8; 16];

/// r, s, message and tag of §2.5.2, and then of §A.3.
pub(super) fn tags() -> Vec<(Half, Half, Vec<u8>, Half)> {
    let half = |number: u128| number.to_be_bytes();
    let blocks = |numbers: &[u128]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    let (zero, ones) = ([0; 16], [0xff; 16]);
    let (one, two) = (half(1 << 120), half(2 << 120));
    let all = u128::MAX;
    // r of the last two.
    let four = half(0x0100_0000_0000_0000_0400_0000_0000_0000);
    let last = [
        0xe335_94d7_505e_43b9_0000_0000_0000_0000,
        0x3394_d750_5e43_79cd_0100_0000_0000_0000,
        0,
        1 << 120,
    ];
    let contribution = half(0x36e5_f6b5_c5e0_6070_f0ef_ca96_227a_863e);
    vec![
        (
            half(0x85d6_be78_5755_6d33_7f44_52fe_42d5_06a8),
            half(0x0103_808a_fb0d_b2fd_4abf_f6af_4149_f51b),
            b"Cryptographic Forum Research Group".to_vec(),
            half(0xa806_1dc1_3051_36c6_c22b_8baf_0c01_27a9),
        ),
        (zero, zero, vec![0; 64], zero),
        (zero, contribution, CONTRIBUTION.to_vec(), contribution),
        (
            contribution,
            zero,
            CONTRIBUTION.to_vec(),
            half(0xf347_7e7c_d954_17af_89a6_b879_4c31_0cf0),
        ),
        (
            half(0x1c92_40a5_eb55_d38a_f333_8886_04f6_b5f0),
            half(0x4739_17c1_402b_8009_9dca_5cbc_2070_75c0),
            JABBERWOCKY.to_vec(),
            half(0x4541_669a_7eaa_ee61_e708_dc7c_bcc5_eb62),
        ),
        (two, zero, blocks(&[all]), half(3 << 120)),
        (two, ones, blocks(&[2 << 120]), half(3 << 120)),
        (
            one,
            zero,
            blocks(&[all, all - (0x0f << 120), 0x11 << 120]),
            half(5 << 120),
        ),
        (
            one,
            zero,
            blocks(&[
                all,
                0xfbfe_fefe_fefe_fefe_fefe_fefe_fefe_fefe,
                0x0101_0101_0101_0101_0101_0101_0101_0101,
            ]),
            zero,
        ),
        (
            two,
            zero,
            blocks(&[all - (2 << 120)]),
            half(all - (5 << 120)),
        ),
        (four, zero, blocks(&last), half(0x14 << 120 | 0x55 << 56)),
        (four, zero, blocks(&last[..3]), half(0x13 << 120)),
    ]
}
