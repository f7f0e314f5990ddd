import js from "@eslint/js";
import globals from "globals";
import typescript from "typescript-eslint";

export default [
  js.configs.recommended,
  {
    plugins: { "@typescript-eslint": typescript.plugin },
    languageOptions: {
      ecmaVersion: 2022,
      sourceType: "module",
      globals: globals.browser,
      parser: typescript.parser,
      parserOptions: {
        project: "tsconfig.json",
        tsconfigRootDir: decodeURIComponent(new URL(".", import.meta.url).pathname),
      },
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      eqeqeq: "error",
      "no-duplicate-imports": "error",
      "no-implicit-globals": "error",
      "no-redeclare": "error",
      "no-shadow-restricted-names": "error",
      "no-unused-vars": ["error", { caughtErrors: "none" }],
      "no-use-before-define": ["error", { functions: false, variables: false }],
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      // Nothing is of any type, also where a function of the browser's returns one.
      "@typescript-eslint/ban-ts-comment": "error",
      "@typescript-eslint/no-explicit-any": "error",
      "@typescript-eslint/no-unsafe-argument": "error",
      "@typescript-eslint/no-unsafe-assignment": "error",
      "@typescript-eslint/no-unsafe-call": "error",
      "@typescript-eslint/no-unsafe-member-access": "error",
      "@typescript-eslint/no-unsafe-return": "error",
      // A value that may be null would be written as that word.
      "@typescript-eslint/restrict-template-expressions": [
        "error",
        { allowAny: false, allowBoolean: false, allowNullish: false, allowNumber: true },
      ],
    },
  },
  // Declarations for the modules; the type checker knows them all.
  { files: ["**/*.d.ts"], rules: { "no-undef": "off", "no-unused-vars": "off" } },
];
