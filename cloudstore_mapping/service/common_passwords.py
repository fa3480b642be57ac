"""Common passwords: refuse the passwords an attacker guesses first."""

from __future__ import annotations

import string
from typing import Final

from cloudstore_mapping.errors import BadValueError

# From published lists of leaked passwords.
_LEAKED: Final = """
000000 00000000 01234567 0123456789 0987654321 10203040 1029384756 111111 11111111 111222333 112233 11223344
1122334455 121212 123123 123123123 123321 123321123 1234 12341234 12345 1234512345 123456 1234567 12345678 123456789
1234567890 12345679 123654789 1234qwer 123qwe 123qweasd 123qweasdzxc 12qwaszx 147258369 159753456 1a2b3c4d 1q2w3e
1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc 1qazxsw2 22222222 654321 666666 66666666 69696969 741852963
777777 77777777 789456123 87654321 888888 88888888 963852741 987654321 9876543210 99999999 a1b2c3d4 a1b2c3d4e5
aa123456 abc123 abc12345 abcd1234 abcdefgh abcdefghi administrator adminadmin alexander asdasdasd asdf1234 asdfasdf
asdfghjk asdfghjkl azertyui azertyuiop babygirl baseball basketball blink182 butterfly changeit changeme chocolate
cloudstore computer consumer corvette danielle droidscript einstein elizabeth explorer facebook fireball firebird
football franklin garfield goodluck hardcore iloveyou instagram internet iwantyou jennifer jonathan juventus kimberly
letmein linkedin liverpool lovelove mercedes metallica michelle midnight minecraft myspace nicholas nintendo p@ssw0rd
p@ssword pa55word pakistan passport passw0rd password passwort peekaboo porsche princess qazwsxed qazwsxedc qwer1234
qwerqwer qwerty qwertyui qwertyuiop qwertz qwertzui rootroot samantha samsung scorpion spiderman starwars steelers
stephanie sunshine superman superstar testtest trustno1 victoria webmaster welcome whatever yankees zaq12wsx
zaqwsxcde zxcvbnm
"""
# Common with digits or punctuation appended, as in "welcome123!".
_BEGINNINGS: Final = """
abc abcd admin asdf azerty charlie chelsea default dragon freedom guest hallo hello jordan killer login love loveyou
master michael monkey mustang ninja pass patrick pokemon qwer root secret shadow snoopy soccer summer test user
william winter
"""
_COMMON: Final = frozenset(_LEAKED.split())
_STEMS: Final = _COMMON.union(_BEGINNINGS.split())
_END: Final = string.digits + string.punctuation + string.whitespace
#: Minimum length of a password to check it also without its final digits and punctuation, and minimum number of
#: different characters in an owner's password.
_LONG: Final = 8
_MIN_DIFFERENT: Final = 3


def check_uncommon(password: str, user: str | None = None) -> None:
    """Raise `BadValueError` for a common password; with `user`, for the user name or under 3 different characters."""
    plain = password.strip().casefold()
    stem = plain.rstrip(_END)
    if plain in _COMMON or (len(plain) >= _LONG and stem in _STEMS):
        raise BadValueError("The password is one of the most common ones; take another.")
    if user is None:
        return
    name = user.strip().casefold()
    if plain == name or (stem and stem == name.rstrip(_END)):
        raise BadValueError("The new password is the user name; take another.")
    if len(set(plain)) < _MIN_DIFFERENT:
        raise BadValueError("The new password repeats one or two characters; take another.")
