// ALTCHA's published widget; `npm ci` writes it, as one ES module, to vendor/altcha.js.
import "altcha";
